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
from ragkv.experiment.durations import duration, plan, report_seconds, steps
from ragkv.experiment.experiment import Experiment
from ragkv.models.fingerprint import fingerprint
from ragkv.models.load import DTYPES

TFLOPS, BANDWIDTH = 400, 2.5  # of a GPU that is not measured, in 1e12 operations and bytes a second


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


def expected_seconds(experiments: list[Experiment]) -> dict[str, float]:
    """Seconds of each of a profile's `steps` on this machine, on average over its models, and of its ``report``.

    A GPU's speed is assumed: if this process measured it, it would keep some of the GPU's memory until it ends.

    Raises
    ------
    ValueError
        A model's shape is not known.
    """
    first = experiments[0]
    if device_name(first).startswith("cuda"):
        speed, size = assumed_speed(TFLOPS, BANDWIDTH), number_bytes(first, on_gpu=True)
    else:
        speed, size = speed_here(first)
    by_model = pd.DataFrame([steps(each, plan(each, speed, size), speed, size) for each in experiments])
    return {**by_model.mean(), "report": report_seconds(experiments)}


def speed_here(experiment: Experiment) -> tuple[Speed, int]:
    """This machine's speed in the profile's dtype, and the bytes of a number in it; errors as in `device_of`."""
    device = device_of(experiment)
    size = number_bytes(experiment, on_gpu=device.type == "cuda")
    return measure_speed(device, torch.float32 if size == 4 else torch.bfloat16), size


def device_name(experiment: Experiment) -> str:
    """The profile's device; ``auto`` is a GPU if there is one."""
    name = experiment.profile.device
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def device_of(experiment: Experiment) -> torch.device:
    """Where the profile's models run on this machine.

    Raises
    ------
    ValueError
        The profile asks for a GPU, and there is none.
    """
    name = device_name(experiment)
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"the profile {experiment.name} asks for the device {name!r}, and PyTorch sees no GPU here: plan for one "
            f"with --tflops {TFLOPS} --bandwidth {BANDWIDTH}, or set `device: cpu`"
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
        float | None,
        typer.Option(min=0.001, help=f"Plan for a GPU of this speed in prefill, in TFLOP/s (such as {TFLOPS})."),
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option(min=0.001, help=f"And of this memory bandwidth, in TB/s (such as {BANDWIDTH}).")
    ] = None,
) -> None:
    """Estimate how long a profile takes on this machine, and how much it stores."""
    experiments = Experiment.load_all(profile, root=root)
    first = experiments[0]
    assumed = tflops is not None or bandwidth is not None
    if assumed:
        speed, size = assumed_speed(tflops or TFLOPS, bandwidth or BANDWIDTH), number_bytes(first, on_gpu=True)
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
        f"{readable_gigabytes(stored)} GB{free}, if nothing of it is finished yet"
    )


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table with times and sizes in units that people read."""
    time = (table["precompute"] + table["answering"]).map(readable_time)
    shown = table.drop(columns=["precompute", "answering", "bytes"])
    return shown.assign(time=time, GB=table["bytes"].map(readable_gigabytes))


def readable_time(seconds: float) -> str:
    """A time in the unit that people would use: 40 seconds, 12 minutes, 3.4 hours."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.2g} hours" if seconds < 360_000 else f"{seconds / 86400:.0f} days"


def readable_gigabytes(count: float) -> str:
    """A number of bytes in units of 1e9 bytes."""
    return f"{count / 1e9:.2g}" if count < 1e10 else f"{count / 1e9:,.0f}"


def free_gigabytes(folder: Path) -> float:
    """How much fits on the disk of a folder, in 1e9 bytes."""
    return shutil.disk_usage(folder).free / 1e9
