"""What an evaluation's rows depend on, and the hash that says whether two evaluations are the same."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple

import torch
import transformers

from ragkv.benchmarks import TaskParameters
from ragkv.eviction import Eviction
from ragkv.experiment.experiment import Experiment
from ragkv.experiment.offline import Offline
from ragkv.selectors import Selector
from ragkv.version import __version__

# Change this when rows get other columns, or a column another meaning: older tables are then computed again.
COLUMNS = "with fidelity"
ELSEWHERE = {"benchmarks", "models", "methods"}  # parameters that an evaluation's identity includes by other means
UNDECISIVE = {"store", "note", "timed"}  # parameters that decide no row


class Method(NamedTuple):
    """What makes one row of results: a selector, with its name in tables and in the registry."""

    name: str
    kind: str
    selector: Selector
    offline: Offline = Offline()
    eviction: Eviction | None = None

    @property
    def exact(self) -> bool:
        """Whether it is a full prefill that keeps everything, which the other methods are compared with."""
        return not self.selector.reuses and self.eviction is None


def methods_of(experiment: Experiment, task: TaskParameters, weights: str) -> list[Method]:
    """Every method of the profile at every ratio, in the order of the results.

    Parameters
    ----------
    weights
        The model's fingerprint.

    Raises
    ------
    ValueError
        A method wants the model's calibration, and there is none, or it is another model's.
    """
    return [
        Method(method.name, method.selector, selector, method.offline, method.evicts())
        for method in experiment.profile.methods
        for selector in experiment.selectors(method, task.ratios, weights)
    ]


def depends_on(experiment: Experiment, benchmark: str, task: str, weights: str, dtype: str) -> dict[str, str]:
    """Everything that an evaluation's rows depend on, by name: as it is, or as a hash.

    It is the same without the model, so that results on disk can be compared with a profile.

    Parameters
    ----------
    weights, dtype
        The model's fingerprint and data type.

    Raises
    ------
    FileNotFoundError, ValueError
        The prompts were not made, or a calibration or a learned context does not exist or is another model's.
    """
    parameters = experiment.parameters(benchmark, task)
    profile = experiment.profile
    items = experiment.items(benchmark, task)
    contexts = experiment.contexts.state
    return {
        "versions": versions(),
        "model": weights,
        "dtype": dtype,
        "profile": _hash(profile.model_dump_json(exclude=ELSEWHERE | UNDECISIVE)),
        "benchmark": _hash(profile.benchmark(benchmark).model_dump_json(exclude={"tasks"})),
        "task": _hash(parameters.model_dump_json()),
        "methods": _hash(*map(repr, methods_of(experiment, parameters, weights))),  # with calibrated options
        "prompts": _hash(*(json.dumps(asdict(item)) for item in items)),
        "modules": experiment.modules_code(),
        "columns": COLUMNS,
    } | ({"contexts": contexts} if contexts else {})


def versions() -> str:
    """The versions of the packages that decide results."""
    return f"ragkv {__version__}, torch {torch.__version__}, transformers {transformers.__version__}"


def identity(parts: Mapping[str, str]) -> str:
    """A short hash of everything that rows depend on. Rows with different identities never mix."""
    return _hash(json.dumps(parts, sort_keys=True))


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]
