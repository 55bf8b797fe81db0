"""``python -m ragkv.planning PROFILE``: what a profile would run, how long on a GPU, and how much the store will take.

An estimate from above: every prompt at its longest length, every answer at its longest. Prefills count floating-point
operations, decoding counts reading the weights once per token.
"""

import argparse
from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel

from ragkv.costs.prefill import fused, selection
from ragkv.costs.shape import Shape
from ragkv.experiment.experiment import Experiment
from ragkv.store.quantize import number_size


def choosing(experiment: Experiment, benchmark: str, task: str, model: PreTrainedModel) -> pd.DataFrame:
    """What choosing takes at most in a task's longest prompt, by method and ratio: a share of a full prefill."""
    longest = max((item.prompt for item in experiment.items(benchmark, task)), key=lambda prompt: len(prompt.ids))
    shape, tokens, ratios = Shape.of(experiment.model), len(longest.ids), experiment.parameters(benchmark, task).ratios
    table = []
    full = shape.prefill(tokens, tokens, shape.layers)
    for method in experiment.profile.methods:
        for selector in experiment.selectors(method, ratios, model):
            share = selection(shape, selector, tokens, len(longest.question)) / full
            table.append({"method": method.name, "ratio": selector.ratio, "share": share})
    return pd.DataFrame(table, columns=["method", "ratio", "share"]).query("share > 0").reset_index(drop=True)


def plan(experiment: Experiment, tflops: float, bandwidth: float) -> pd.DataFrame:
    """A row per task of one model.

    Parameters
    ----------
    tflops, bandwidth
        What the GPU is assumed to reach: 1e12 floating-point operations, and 1e12 bytes, a second.

    Returns
    -------
    DataFrame
        ``benchmark, task, prompts, tokens`` (of the longest prompt), ``runs`` (answers), ``hours``, ``gigabytes``.
    """
    profile, shape = experiment.profile, Shape.of(experiment.model)
    size = 4 if profile.dtype == "float32" else 2
    table = []
    for name, task in experiment.tasks:
        benchmark, parameters = profile.benchmark(name), experiment.parameters(name, task)
        selectors = [s for method in profile.methods for s in method.selectors(parameters.ratios, experiment.model)]
        new = parameters.max_new_tokens or benchmark.task(task).max_new_tokens
        operations = seconds = stored = 0.0
        for prompts, tokens in benchmark.sizes(task):
            chunks = max(1.0, tokens / profile.chunk_tokens)
            passes = sum(1 + (way.similar if way.context == "similar" else 0) for way in profile.offline)
            offline = passes * chunks * shape.prefill(tokens / chunks, tokens / chunks, shape.layers)
            online = sum(fused(shape, selector, tokens) for selector in selectors)
            operations += prompts * (offline + online)
            seconds += prompts * len(selectors) * new * shape.weights * size / (bandwidth * 1e12)
            numbers = sum(number_size(way.format, size) for way in profile.offline)
            stored += prompts * tokens * shape.bytes_per_token(numbers)
        prompts = sum(count for count, _ in benchmark.sizes(task))
        table.append(
            {"benchmark": name, "task": task, "prompts": prompts, "tokens": max(t for _, t in benchmark.sizes(task))}
            | {"runs": prompts * len(selectors), "hours": (operations / (tflops * 1e12) + seconds) / 3600}
            | {"gigabytes": stored / 1e9}
        )
    return pd.DataFrame(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ragkv.planning", description="Estimate what a profile takes.")
    parser.add_argument("profile")
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--tflops", type=float, default=400, help="assumed speed in prefill (default: %(default)s)")
    parser.add_argument(
        "--bandwidth", type=float, default=2.5, help="assumed memory bandwidth, TB/s (default: %(default)s)"
    )
    options = parser.parse_args()
    for model in Experiment.load(options.profile, root=options.root).profile.models:
        table = plan(
            Experiment.load(options.profile, model=model, root=options.root), options.tflops, options.bandwidth
        )
        print(f"\n{model}\n{table.to_string(index=False, float_format='{:.2f}'.format)}")
        print(
            f"at most {table['hours'].sum():.1f} GPU-hours and {table['gigabytes'].sum():.0f} GB in the store,", end=" "
        )
        print(f"assuming {options.tflops:g} TFLOP/s and {options.bandwidth:g} TB/s (--tflops, --bandwidth)")


if __name__ == "__main__":
    main()
