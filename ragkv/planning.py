"""``python -m ragkv.planning PROFILE``: what a profile would run, how long on a GPU, and how much the store will take.

An upper bound: every prompt at its longest, every answer at its longest. Prefills count floating-point operations,
decoding counts reading the weights once per token.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from transformers import PreTrainedModel

from ragkv.costs.prefill import operations, precompute_operations
from ragkv.costs.roofline import Machine
from ragkv.costs.shape import Shape
from ragkv.experiment.experiment import Experiment
from ragkv.experiment.offline import Offline
from ragkv.models.fingerprint import fingerprint
from ragkv.store.quantize import number_size


def choosing(experiment: Experiment, benchmark: str, task: str, model: PreTrainedModel) -> pd.DataFrame:
    """What choosing takes at most in a task's longest prompt, as a share of a full prefill's operations.

    Returns
    -------
    DataFrame
        ``method, ratio, share``; methods whose choice takes no operations are left out.
    """
    prompts = [item.prompt for item in experiment.items(benchmark, task)]
    longest = max(prompts, key=lambda prompt: len(prompt.ids))
    tokens, question = len(longest.ids), len(longest.question)
    shape = Shape.of(experiment.model_source)
    full = shape.prefill(tokens, tokens, shape.layers)
    ratios = experiment.parameters(benchmark, task).ratios
    table = []
    for method in experiment.profile.methods:
        for selector in experiment.selectors(method, ratios, fingerprint(model)):
            share = selector.operations(shape, tokens, question) / full
            table.append({"method": method.name, "ratio": selector.ratio, "share": share})
    return pd.DataFrame(table, columns=["method", "ratio", "share"]).query("share > 0").reset_index(drop=True)


def plan(experiment: Experiment, tflops: float, bandwidth: float) -> pd.DataFrame:
    """A row per task of one model.

    Parameters
    ----------
    tflops, bandwidth
        The speed that the GPU is assumed to reach: 1e12 floating-point operations and 1e12 bytes a second.

    Returns
    -------
    DataFrame
        ``benchmark, task, prompts, tokens`` (of the longest prompt), ``runs`` (answers), ``hours``, ``gigabytes``.
    """
    profile, shape = experiment.profile, Shape.of(experiment.model_source)
    machine = Machine("assumed", tflops, bandwidth * 1e3)
    number_bytes = 4 if profile.dtype == "float32" else 2
    stored_bytes = sum(number_size(offline.format, number_bytes) for offline in profile.offline)
    passes = sum(map(_passes_over_chunks, profile.offline))
    table = []
    for name, task in experiment.tasks:
        benchmark, parameters = profile.benchmark(name), experiment.parameters(name, task)
        selectors = [s for method in profile.methods for s in method.selectors(parameters.ratios, experiment.model)]
        answer_tokens = parameters.max_new_tokens or benchmark.task(task).max_new_tokens
        sizes = benchmark.sizes(task)
        seconds = stored = 0.0
        for prompts, tokens in sizes:
            offline = passes * precompute_operations(shape, tokens, profile.chunk_tokens)
            online = sum(operations(shape, selector, tokens) for selector in selectors)
            decoding = machine.moving(shape.weights * number_bytes) * answer_tokens * len(selectors)
            seconds += prompts * (machine.computing(offline + online) + decoding)
            if profile.store.keep:
                stored += prompts * tokens * shape.bytes_per_token(stored_bytes)
        prompts = sum(count for count, _ in sizes)
        table.append(
            {
                "benchmark": name,
                "task": task,
                "prompts": prompts,
                "tokens": max(tokens for _, tokens in sizes),
                "runs": prompts * len(selectors),
                "hours": seconds / 3600,
                "gigabytes": stored / 1e9,
            }
        )
    return pd.DataFrame(table)


def _passes_over_chunks(offline: Offline) -> int:
    """How often chunks are computed: behind similar ones, these are computed along with each chunk."""
    return 1 + (offline.similar if offline.context == "similar" else 0)


def plan_command(
    profile: Annotated[str, typer.Argument(help="A file in params/, without .yaml.")],
    root: Annotated[Path, typer.Option(help="The project's folder, which holds params/.")] = Path(),
    tflops: Annotated[float, typer.Option(min=0.001, help="Assumed speed in prefill, in TFLOP/s.")] = 400,
    bandwidth: Annotated[float, typer.Option(min=0.001, help="Assumed memory bandwidth, in TB/s.")] = 2.5,
) -> None:
    """Estimate a profile's GPU-hours and gigabytes, task by task, from above."""
    for experiment in Experiment.load_all(profile, root=root):
        table = plan(experiment, tflops, bandwidth)
        typer.echo(f"\n{experiment.model}\n{table.to_string(index=False, float_format='{:.2f}'.format)}")
        typer.echo(
            f"at most {table['hours'].sum():.1f} GPU-hours and {table['gigabytes'].sum():.0f} GB in the store, "
            f"assuming {tflops:g} TFLOP/s and {bandwidth:g} TB/s (--tflops, --bandwidth)"
        )


if __name__ == "__main__":
    typer.run(plan_command)
