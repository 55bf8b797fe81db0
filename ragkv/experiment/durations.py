"""How long a profile's steps take at a machine's speed, and how much they store: arithmetic, no model is loaded."""

from collections.abc import Sequence

import pandas as pd

from ragkv.costs.shape import Shape
from ragkv.costs.speed import Speed
from ragkv.experiment.experiment import Experiment
from ragkv.experiment.offline import Offline
from ragkv.experiment.steps import ORACLE_PROMPTS, close_up
from ragkv.selectors import get_selector
from ragkv.store.quantize import number_size

NOTEBOOK_SECONDS = 9.0  # to start a notebook, import everything and load a small model
FIGURES_SECONDS = 5.0  # of a model and benchmark in the report
DECODED = 0.5  # the share of `max_new_tokens` that an answer has on average


def plan(experiment: Experiment, speed: Speed, size: int) -> pd.DataFrame:
    """A row per task of one model.

    Parameters
    ----------
    speed
        What one job reaches, see `ragkv.bench.speed`.
    size
        Bytes of a number in the model's dtype.

    Returns
    -------
    DataFrame
        ``benchmark, task, prompts, tokens`` (of the longest prompt), ``answers``; ``precompute`` and ``answering`` in
        seconds of one job; ``bytes`` that are stored, if no two prompts share a chunk.
    """
    shape = Shape.of(experiment.model_source)
    table = []
    for name, task in experiment.tasks:
        benchmark, parameters = experiment.profile.benchmark(name), experiment.parameters(name, task)
        methods = experiment.profile.methods
        selectors = [s for method in methods for s in method.selectors(parameters.ratios, experiment.model)]
        answer_tokens = DECODED * (parameters.max_new_tokens or benchmark.task(task).max_new_tokens)
        decoding = (1 + answer_tokens) * speed.decoding(shape, size)  # once along full prefill's answer
        sizes = benchmark.sizes(task)
        precompute = answering = stored = 0.0
        for prompts, tokens in sizes:
            computing, files, stored_bytes = _chunks(experiment, shape, speed, tokens, size)
            prefills = sum(speed.prefill(shape, selector, tokens, size) for selector in selectors)
            answering += prompts * (prefills + len(selectors) * decoding)
            if experiment.profile.store.keep:
                precompute += prompts * (computing + files)
                answering += prompts * files  # they are read and checked
                stored += prompts * stored_bytes
            else:
                answering += prompts * computing
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


def _chunks(experiment: Experiment, shape: Shape, speed: Speed, tokens: int, size: int) -> tuple[float, float, float]:
    """Of a prompt's chunks, in every way that a method wants them: seconds to compute and to write, and bytes."""
    chunk_tokens = experiment.profile.chunk_tokens
    computing = files = stored = 0.0
    for offline in experiment.profile.offline:
        number_bytes = number_size(offline.format, size)
        computing += _passes_over_chunks(offline) * speed.chunks(shape, tokens, chunk_tokens, size)
        files += speed.files(shape, tokens, chunk_tokens, number_bytes)
        stored += tokens * shape.bytes_per_token(number_bytes)
    return computing, files, stored


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


def report_seconds(experiments: Sequence[Experiment]) -> float:
    """Seconds of a profile's report, which draws figures of every model and benchmark."""
    figures = sum(len(experiment.profile.benchmarks) for experiment in experiments)
    return NOTEBOOK_SECONDS + FIGURES_SECONDS * figures


def duration(by_model: Sequence[dict[str, float]], report: float, jobs: int) -> float:
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
