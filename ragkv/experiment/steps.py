"""The steps of a run that are not a single task's: what the Snakefile, the notebooks and ``ragkv run`` share.

A run chunks, precomputes, evaluates every task, looks closely at one prompt, compares choices with an oracle's, and
writes the report. This module says which task is looked at closely, on how many prompts the oracle looks, and where
each step keeps what it did.
"""

from dataclasses import asdict
from functools import reduce
from operator import add
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedModel

from ragkv.experiment.experiment import Experiment
from ragkv.results.files import damage, read_json, write_json
from ragkv.shards import Shard
from ragkv.store.precompute import Precomputed

ORACLE_PROMPTS = 12  # an oracle needs a full prefill and a full reuse of each
CLOSE_RATIO = 0.15  # the ratio at which selected tokens are shown, or the task's nearest


class CloseUp(NamedTuple):
    """The evaluated prompt that is looked at closely: its task, its number in the task, and a ratio."""

    benchmark: str
    task: str
    number: int
    ratio: float


def close_up(experiment: Experiment) -> CloseUp:
    """The first prompt of the task with the most ratios; among these, of the task with the most prompts."""

    def size(task: tuple[str, str]) -> tuple[int, int]:
        parameters = experiment.parameters(*task)
        return len(parameters.ratios), parameters.prompts

    benchmark, task = max(experiment.tasks, key=size)
    ratios = experiment.parameters(benchmark, task).ratios
    return CloseUp(benchmark, task, number=0, ratio=min(ratios, key=lambda ratio: abs(ratio - CLOSE_RATIO)))


def precompute_step(
    experiment: Experiment, model: PreTrainedModel, *, shard: str | None = None, progress: bool = False
) -> Precomputed:
    """`Experiment.precompute`, also written to the experiment's outputs.

    Where nothing had to be computed, the file of the run that computed the same segments is kept.
    """
    done = experiment.precompute(model, shard=shard, progress=progress)
    part = Shard.parse(shard)
    if part.whole:
        _write_precompute(experiment.outputs.precompute, done)
    else:
        write_json(part.path(experiment.outputs.precompute), asdict(done))
    return done


def _write_precompute(path: Path, done: Precomputed) -> None:
    """Write what was done, unless nothing was, and an earlier run's file is about the same segments."""
    if not done.written and path.exists() and not damage(path):
        earlier = read_json(path, "")
        same = {"segments": done.segments, "shared": done.shared}
        if earlier.keys() == asdict(done).keys() and earlier | same == earlier:
            return
    write_json(path, asdict(done), checked=True)


def join_precompute(experiment: Experiment, shards: int) -> Precomputed:
    """Add up what the shards of `precompute_step` wrote, and write it as one run would have."""
    whole = experiment.outputs.precompute
    parts = [read_json(shard.path(whole), "02_precompute.ipynb") for shard in Shard.all(shards)]
    done = reduce(add, (Precomputed(**part) for part in parts))
    _write_precompute(whole, done)
    return done
