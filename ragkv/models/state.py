"""What a model's state is: the values and tensors that decide what it computes, and whether they are still the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter, itemgetter
from typing import Any
from weakref import ReferenceType

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from ragkv.models import code

DECIDING = (  # attributes of transformers' modules that their forward uses
    "variance_epsilon scaling head_dim attention_scaling rope_type max_norm norm_type use_rope embedding_multiplier "
    "residual_multiplier eps sliding_attention_attention_scaling full_attention_attention_scaling"
).split()
_WATCHED = (*DECIDING, "training", "gradient_checkpointing")
_IGNORED = {*vars(nn.Module()), "forward", "_hf_hook", "_old_forward", "_is_hf_initialized"}
_SIMPLE = (bool, int, float, str, type(None))
PLAIN = (*_SIMPLE, complex, bytes, torch.dtype, Enum)


@dataclass(frozen=True)
class Place:
    """Where to find something in a model. It keeps neither the model nor what it finds alive.

    Tensors have no weak references here: PyTorch could no longer swap them, which it does when it moves quantised ones.
    """

    module: ReferenceType[nn.Module]
    steps: tuple[Callable, ...] = ()

    def find(self) -> Any:
        """What is there now; None if the module was deleted."""
        item: Any = self.module()
        for step in self.steps:
            item = step(item)
        return item

    def attribute(self, name: str) -> "Place":
        """The place of an attribute."""
        return Place(self.module, (*self.steps, attrgetter(name)))

    def item(self, key: Any) -> "Place":
        """The place of a container's item."""
        return Place(self.module, (*self.steps, itemgetter(key)))


@dataclass(frozen=True)
class State:
    """What a model's results depend on, besides the configuration.

    Attributes
    ----------
    values
        Everything that is no tensor, by name, as JSON can hold it.
    tensors
        The places of parameters, buffers, and the tensors of quantised weights and adapters, by name.
    items
        Of all modules and foreign objects, parents first: their places, whether they are foreign, and their looks.
    classes
        The classes of foreign modules and objects, and their members.
    """

    values: dict[str, Any]
    tensors: dict[str, Place]
    items: list[tuple[Place, bool, tuple]]
    classes: dict[type, list]

    @property
    def foreign(self) -> bool:
        """Whether there are modules or objects that transformers does not build from the configuration."""
        return any(foreign for _, foreign, _ in self.items)

    def unchanged(self) -> bool:
        """Whether every module, object and class still looks as it did."""
        if global_hook() is not None:
            return False
        if any(code.members(kind) != members for kind, members in self.classes.items()):
            return False
        for place, foreign, before in self.items:
            item = place.find()
            if item is None or looks(item, foreign) != before:
                return False
        return True


def global_hook() -> Callable | None:
    """A hook that runs in the forward of all modules, if there is one."""
    for hooks in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks):
        if hooks:
            return next(iter(hooks.values()))
    return None


def own_attributes(item: Any) -> list[tuple[str, Any]]:
    """The attributes of an object, without those that every module has."""
    return [(key, value) for key, value in vars(item).items() if key not in _IGNORED]


def looks(item: Any, foreign: bool) -> tuple:
    """All that may change in a module or an object except the contents of tensors; quick to compare.

    Objects stand here by their ids, which are theirs only as long as they live.
    """
    attributes = vars(item)
    values = list(map(attributes.get, _WATCHED))
    if foreign:
        values += [frozen(value) for _, value in own_attributes(item)]
    if not isinstance(item, nn.Module):
        return type(item), len(attributes), values
    members = [*attributes["_parameters"].values(), *attributes["_buffers"].values(), *attributes["_modules"].values()]
    hooks = len(attributes["_forward_hooks"]), len(attributes["_forward_pre_hooks"])
    forward = id(type(item).forward), id(attributes.get("forward")), id(attributes.get("_hf_hook"))
    return type(item), values, list(map(id, members)), hooks, forward


def frozen(value: Any) -> Any:
    """A copy of plain values as JSON can hold them; other objects by their ids."""
    if type(value) in _SIMPLE:  # before slower checks, as most values are of these
        return value
    if isinstance(value, dict):
        return {str(key): frozen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [frozen(item) for item in value]
    if isinstance(value, Mapping):
        return frozen(dict(value))
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, PLAIN):
        return repr(value)
    return id(value)
