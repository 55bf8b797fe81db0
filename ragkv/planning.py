"""``ragkv plan PROFILE``: how long `make reproduce` takes on this machine, and how much it stores.

The machine is measured for a second, and everything else is arithmetic (`ragkv.costs`), so a profile can be planned
without its model's weights. Hours and gigabytes are meant to be right within a factor of two.
"""

import os
import shutil
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from transformers import PreTrainedModel

from ragkv.bench.speed import measure_speed
from ragkv.costs.shape import Shape
from ragkv.costs.speed import Speed
from ragkv.experiment.experiment import Experiment
from ragkv.experiment.offline import Offline
from ragkv.experiment.steps import ORACLE_PROMPTS, close_up
from ragkv.models.fingerprint import fingerprint
from ragkv.models.load import DTYPES
from ragkv.selectors import get_selector
from ragkv.store.quantize import number_size

NOTEBOOK_SECONDS = 9.0  # to start a notebook, import everything and load a small model
FIGURES_SECONDS = 5.0  # of a model and benchmark in the report
DECODED = 0.5  # the share of `max_new_tokens` that an answer has on average


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


def plan(experiment: Experiment, speed: Speed, size: int) -> pd.DataFrame:
    """A row per task of one model.

    Parameters
    ----------
    speed
        What one job reaches, see `ragkv.bench.speed`.
    size
        Bytes of a number in the model's dtype, see `number_bytes`.

    Returns
    -------
    DataFrame
        ``benchmark, task, prompts, tokens`` (of the longest prompt), ``answers``; ``precompute`` and ``answering`` in
        seconds of one job; ``bytes`` that are stored, if no two prompts share a chunk.
    """
    profile, shape = experiment.profile, Shape.of(experiment.model_source)
    table = []
    for name, task in experiment.tasks:
        benchmark, parameters = profile.benchmark(name), experiment.parameters(name, task)
        selectors = [s for method in profile.methods for s in method.selectors(parameters.ratios, experiment.model)]
        answer_tokens = DECODED * (parameters.max_new_tokens or benchmark.task(task).max_new_tokens)
        decoding = (1 + answer_tokens) * speed.decoding(shape, size)  # once along full prefill's answer
        precompute = answering = stored = 0.0
        sizes = benchmark.sizes(task)
        for prompts, tokens in sizes:
            for offline in profile.offline:
                stored_size = number_size(offline.format, size)
                passes = _passes_over_chunks(offline)
                precompute += (
                    prompts * passes * speed.precompute(shape, tokens, profile.chunk_tokens, size, stored_size)
                )
                answering += prompts * speed.reading(shape, tokens, stored_size)
                stored += prompts * tokens * shape.bytes_per_token(stored_size)
            prefills = sum(speed.prefill(shape, selector, tokens, size) for selector in selectors)
            answering += prompts * (prefills + len(selectors) * decoding)
        prompts = sum(count for count, _ in sizes)
        table.append(
            {
                "benchmark": name,
                "task": task,
                "prompts": prompts,
                "tokens": max(tokens for _, tokens in sizes),
                "answers": prompts * len(selectors),
                "precompute": precompute,
                "answering": answering,
                "bytes": stored,
            }
        )
    return pd.DataFrame(table)


def _passes_over_chunks(offline: Offline) -> int:
    """How often chunks are computed: behind similar ones, these are computed along with each chunk."""
    return 1 + (offline.similar if offline.context == "similar" else 0)


def steps(experiment: Experiment, table: pd.DataFrame, speed: Speed, size: int) -> dict[str, float]:
    """Seconds of each of a model's steps in `make reproduce`, by the name of its rule; one ``evaluate`` per benchmark.

    Parameters
    ----------
    table
        Of `plan`.
    """
    shape = Shape.of(experiment.model_source)
    looked_at = close_up(experiment)
    tokens = table.set_index(["benchmark", "task"]).loc[(looked_at.benchmark, looked_at.task), "tokens"]
    full = speed.prefill(shape, get_selector("full_prefill"), tokens, size)
    seconds = {
        "environment": 0.0,
        "chunking": 0.0,
        "precompute": table["precompute"].sum(),
        "tokens": full,
        "frontier": 3 * ORACLE_PROMPTS * full,
    }
    for benchmark, part in table.groupby("benchmark", sort=False):
        seconds[f"evaluate {benchmark}"] = part["answering"].sum()
    return {name: NOTEBOOK_SECONDS + value for name, value in seconds.items()}


def report_seconds(experiments: list[Experiment]) -> float:
    """Seconds of a profile's report, which draws figures of every model and benchmark."""
    figures = sum(len(experiment.profile.benchmarks) for experiment in experiments)
    return NOTEBOOK_SECONDS + FIGURES_SECONDS * figures


def duration(by_model: list[dict[str, float]], report: float, jobs: int) -> float:
    """Seconds of all models' `steps` and the report, `jobs` at a time.

    A model's benchmarks are evaluated side by side; everything else of a model is done in order.
    """
    work = sum(sum(seconds.values()) for seconds in by_model)
    longest = max(map(_in_order, by_model))
    return max(work / jobs, longest) + report


def _in_order(seconds: dict[str, float]) -> float:
    """Seconds of a model's steps that cannot run side by side."""
    longest = max(value for name, value in seconds.items() if name.startswith("evaluate"))
    ahead = seconds["environment"] + seconds["chunking"] + seconds["precompute"]
    return ahead + longest + max(seconds["tokens"], seconds["frontier"])


def expected_seconds(experiments: list[Experiment]) -> dict[str, float]:
    """Seconds of each of a profile's `steps` on this machine, on average over its models, and of its ``report``.

    Raises
    ------
    ValueError
        The profile asks for a GPU, and there is none; or a model's shape is not known.
    """
    speed, size = speed_here(experiments[0])
    by_model = pd.DataFrame([steps(each, plan(each, speed, size), speed, size) for each in experiments])
    return {**by_model.mean(), "report": report_seconds(experiments)}


def speed_here(experiment: Experiment) -> tuple[Speed, int]:
    """This machine's speed in the profile's dtype, and the bytes of a number in it; errors as in `device_of`."""
    device = device_of(experiment)
    size = number_bytes(experiment, on_gpu=device.type == "cuda")
    return measure_speed(device, torch.float32 if size == 4 else torch.bfloat16), size


def device_of(experiment: Experiment) -> torch.device:
    """Where the profile's models run on this machine.

    Raises
    ------
    ValueError
        The profile asks for a GPU, and there is none.
    """
    name = experiment.profile.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"the profile {experiment.name} asks for the device {name!r}, and PyTorch sees no GPU here: plan for one "
            "with --tflops 400 --bandwidth 2.5, or set `device: cpu`"
        )
    return torch.device(name)


def jobs_here(experiment: Experiment) -> int:
    """How many jobs run side by side on this machine: one per GPU, or per CPU core."""
    return torch.cuda.device_count() if device_of(experiment).type == "cuda" else os.cpu_count() or 1


def number_bytes(experiment: Experiment, *, on_gpu: bool) -> int:
    """Bytes of a number in the model's dtype; ``auto`` is float32 on a CPU, and taken for bfloat16 on a GPU."""
    name = experiment.profile.dtype
    if name == "auto":
        name = "bfloat16" if on_gpu else "float32"
    return DTYPES[name].itemsize


def assumed_speed(tflops: float, bandwidth: float) -> Speed:
    """A GPU that is not this machine's.

    Parameters
    ----------
    bandwidth
        Of its memory, in 1e12 bytes a second.
    """
    device = f"a GPU of {tflops:g} TFLOP/s and {bandwidth:g} TB/s"
    return Speed(device, tflops, memory_gbs=1e3 * bandwidth, reuse_gbs=20.0, layer=1e-4)


def plan_command(
    profile: Annotated[str, typer.Argument(help="A file in params/, without .yaml.")],
    root: Annotated[Path, typer.Option(help="The project's folder, which holds params/.")] = Path(),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="How many run side by side (default: one per GPU, or CPU core).")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(min=0.001, help="Plan for a GPU of this speed in prefill, in TFLOP/s.")
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option(min=0.001, help="And of this memory bandwidth, in TB/s (default: 2.5).")
    ] = None,
) -> None:
    """Estimate how long a profile takes on this machine, and how much it stores."""
    experiments = Experiment.load_all(profile, root=root)
    first = experiments[0]
    assumed = tflops is not None or bandwidth is not None
    if assumed:
        speed, size = assumed_speed(tflops or 400, bandwidth or 2.5), number_bytes(first, on_gpu=True)
    else:
        speed, size = speed_here(first)
    jobs = jobs or (1 if assumed else jobs_here(first))
    by_model, stored = [], 0.0
    for experiment in experiments:
        table = plan(experiment, speed, size)
        by_model.append(steps(experiment, table, speed, size))
        stored += table["bytes"].sum()
        typer.echo(f"{experiment.model}\n{_readable(table).to_string(index=False)}\n")
    seconds = duration(by_model, report_seconds(experiments), jobs)
    at_once = "one job at a time" if jobs == 1 else f"{jobs} jobs at a time"
    free = "" if assumed or first.profile.store.url else f" ({free_gigabytes(root):.0f} GB are free)"
    typer.echo(
        f"{profile} takes about {readable_time(seconds)} on {speed.device}, {at_once}, and stores about "
        f"{stored / 1e9:.2g} GB{free}, if nothing of it is finished yet"
    )


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table with times and sizes in units that people read."""
    time = (table["precompute"] + table["answering"]).map(readable_time)
    shown = table.drop(columns=["precompute", "answering", "bytes"])
    return shown.assign(time=time, GB=(table["bytes"] / 1e9).map("{:.2g}".format))


def readable_time(seconds: float) -> str:
    """A time in the unit that people would use: 40 seconds, 12 minutes, 3.4 hours."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.2g} hours" if seconds < 360_000 else f"{seconds / 86400:.0f} days"


def free_gigabytes(folder: Path) -> float:
    """How much fits on the disk of a folder, in 1e9 bytes."""
    return shutil.disk_usage(folder).free / 1e9
