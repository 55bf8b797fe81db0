"""What an evaluation's rows are made by, and the hash that says whether two evaluations are the same."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

from ragkv.benchmarks import TaskParameters
from ragkv.eviction import Eviction
from ragkv.experiment.experiment import Experiment
from ragkv.experiment.items import Item
from ragkv.experiment.offline import Offline
from ragkv.models.fingerprint import fingerprint
from ragkv.selectors import Selector
from ragkv.version import __version__


class Method(NamedTuple):
    """What makes one row of results: a selector, with its name in tables and in the registry."""

    name: str
    kind: str
    selector: Selector
    offline: Offline = Offline()
    eviction: Eviction | None = None


def methods_of(experiment: Experiment, task: TaskParameters, model: PreTrainedModel) -> list[Method]:
    """Every method of the profile at every ratio, in the order of the results.

    Raises
    ------
    ValueError
        A method wants the model's calibration, and there is none, or it is another model's.
    """
    return [
        Method(method.name, method.selector, selector, method.offline, method.evicts())
        for method in experiment.profile.methods
        for selector in experiment.selectors(method, task.ratios, model)
    ]


def identity(
    experiment: Experiment,
    task: TaskParameters,
    model: PreTrainedModel,
    methods: Iterable[Method],
    items: Iterable[Item],
) -> str:
    """A short hash of everything that an evaluation's rows depend on. Rows with different identities never mix."""
    profile = experiment.profile.model_dump_json(exclude={"benchmarks", "models", "store"})
    parts = [__version__, torch.__version__, transformers.__version__, fingerprint(model), str(model.dtype)]
    parts += [task.model_dump_json(), profile]
    parts += [repr(method) for method in methods]  # includes calibrated options
    parts += [json.dumps(asdict(item)) for item in items]
    if code := experiment.modules_code():
        parts.append(code)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
