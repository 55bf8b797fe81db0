"""Everything that decides what a model computes: its modules, the values beside them, and its tensors.

A module that transformers builds from the configuration is described by the few attributes that its forward uses. Any
other module (an adapter, a quantised projection) is *foreign*: it is described by the code of its class and by all of
its attributes. What cannot be described could change unseen, so it is refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter, itemgetter
from types import BuiltinFunctionType, FunctionType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from ragkv.models import code, refusals

CONFIG = (  # the parts of the configuration that decide
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim hidden_act max_position_embeddings rms_norm_eps rope_parameters attention_bias mlp_bias "
    "quantization_config"
).split()
_DECIDING = ("variance_epsilon", "scaling", "head_dim", "attention_scaling", "rope_type", "max_norm", "norm_type")
_WATCHED = (*_DECIDING, "training", "gradient_checkpointing")
_IGNORED = {*vars(nn.Module()), "forward", "_hf_hook", "_old_forward", "_is_hf_initialized"}
_SIMPLE = (bool, int, float, str, type(None))
_PLAIN = (*_SIMPLE, complex, bytes, torch.dtype, Enum)


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

    def unchanged(self) -> bool:
        """Whether every module, object and class still looks as it did."""
        if _global_hook() is not None:
            return False
        if any(code.members(kind) != members for kind, members in self.classes.items()):
            return False
        for place, foreign, looks in self.items:
            item = place.find()
            if item is None or _looks(item, foreign) != looks:
                return False
        return True


# a memo: the configuration that each model had, and its state
_states: WeakKeyDictionary[PreTrainedModel, tuple[list, State]] = WeakKeyDictionary()


def state_of(model: PreTrainedModel) -> State:
    """The model's state. It is read once, and again if anything but the contents of tensors changed.

    Raises
    ------
    ValueError
        Something decides what the model computes, and cannot be known; the message says what to do.
    """
    refusals.autocast()
    config = configuration(model)
    known = _states.get(model)
    if known is None or known[0] != config or not known[1].unchanged():
        known = config, _read(model)
        _states[model] = known
    return known[1]


def configuration(model: PreTrainedModel) -> list:
    """The values of `CONFIG`, as JSON can hold them."""
    values: list[Any] = [getattr(model.config, name, None) for name in CONFIG]
    return [_frozen(value.to_dict() if hasattr(value, "to_dict") else value) for value in values]


def _read(model: PreTrainedModel) -> State:
    refusals.global_hook(_global_hook())
    reader = _Reader(model.config)
    reader.module("", model)
    return State(reader.values, reader.tensors, reader.items, reader.classes)


def _global_hook() -> Callable | None:
    for hooks in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks):
        if hooks:
            return next(iter(hooks.values()))
    return None


class _Reader:
    """Walks through a model and gathers its state."""

    def __init__(self, config: PretrainedConfig):
        self.values: dict[str, Any] = {}
        self.tensors: dict[str, Place] = {}
        self.items: list[tuple[Place, bool, tuple]] = []
        self.classes: dict[type, list] = {}
        self._family = f"transformers.models.{config.model_type}.modeling_{config.model_type}"
        self._activation = type(ACT2FN[config.hidden_act])
        self._attention_dropout = getattr(config, "attention_dropout", 0.0)
        self._names: dict[int, str] = {}  # of what was read, by id
        self._alive: list[Any] = []  # what was read, so that its id stays its own meanwhile

    def module(self, name: str, module: nn.Module, inside_foreign: bool = False) -> None:
        """Read a module and all below it.

        Parameters
        ----------
        inside_foreign
            Whether it is part of a foreign module.
        """
        place = Place(ref(module))
        foreign = inside_foreign or not self._is_built_in(module)
        if self._is_known(name, module, place, foreign):
            return
        refusals.hooks(name, module)
        if refusals.is_compiled(module):  # it computes what the module inside computes
            self.module(name, module._orig_mod, inside_foreign)
            return
        refusals.forward(name, module, foreign)
        if foreign:
            refusals.foreign(name, module, inside_foreign)
        refusals.training(name, module, foreign, self._attention_dropout)

        attributes = vars(module)
        if foreign:
            self._object(name, module, place)
        else:
            self.values |= {_join(name, key): attributes[key] for key in _DECIDING if key in attributes}
        for kind in ("_parameters", "_buffers"):
            for key, tensor in attributes[kind].items():
                if tensor is not None:
                    self._tensor(_join(name, key), tensor, place.attribute(kind).item(key))
        for key, child in attributes["_modules"].items():
            if child is not None:
                self.module(_join(name, key), child, foreign)

    def _is_built_in(self, module: nn.Module) -> bool:
        """Whether transformers would use this class here; a subclass counts if it has the same forward."""
        kind = type(module)
        if kind in (nn.Linear, nn.Embedding, nn.ModuleList, self._activation):
            return True
        bases: list[Any] = [base for base in kind.__mro__ if base.__module__ == self._family]
        return bool(bases) and bases[0].forward is kind.forward

    def _is_known(self, name: str, item: Any, place: Place, foreign: bool) -> bool:
        """Whether this object was read before, under another name. If not, remember it."""
        first = self._names.setdefault(id(item), name)
        if first != name:
            self.values[name] = f"the same as {first}"
            return True
        self._alive.append(item)
        self.items.append((place, foreign, _looks(item, foreign)))
        return False

    def _object(self, name: str, item: Any, place: Place) -> None:
        """Read the class and the attributes of a foreign module or another object."""
        self.values[name] = self._code(type(item))
        for key, value in _own(item):
            self._attribute(f"{name}.{key}", value, place.attribute(key))

    def _attribute(self, name: str, value: Any, place: Place) -> None:
        if isinstance(value, _PLAIN):
            self.values[name] = _frozen(value)
        elif isinstance(value, torch.device | PretrainedConfig):
            pass  # the same on every device; `CONFIG` is hashed
        elif isinstance(value, Tensor):
            self._tensor(name, value, place)
        elif isinstance(value, nn.Module):
            self.module(name, value, inside_foreign=True)
        elif isinstance(value, Mapping):
            self.values[name] = f"mapping of {len(value)}"
            for key, item in value.items():
                self._attribute(f"{name}[{key!r}]", item, place.item(key))
        elif isinstance(value, list | tuple):
            self.values[name] = f"sequence of {len(value)}"
            for index, item in enumerate(value):
                self._attribute(f"{name}[{index}]", item, place.item(index))
        elif isinstance(value, set | frozenset) and all(isinstance(item, _PLAIN) for item in value):
            self.values[name] = sorted(map(repr, value))
        elif isinstance(value, type | FunctionType | BuiltinFunctionType) and not getattr(value, "__closure__", None):
            self.values[name] = self._code(value)
        elif not callable(value) and hasattr(value, "__dict__"):
            if not self._is_known(name, value, place, foreign=True):
                self._object(name, value, place)
        else:
            refusals.attribute(name, value)

    def _code(self, item: type | Callable) -> str:
        if isinstance(item, type):
            self.classes[item] = code.members(item)
        return code.describe(item)

    def _tensor(self, name: str, tensor: Tensor, place: Place) -> None:
        refusals.tensor(name, tensor)
        if type(tensor) in (Tensor, nn.Parameter):
            self.tensors[name] = place
        elif self._is_known(name, tensor, place, foreign=True):
            return
        elif hasattr(tensor, "__tensor_flatten__"):  # made of others, such as quantised numbers and their scales
            self._object(name, tensor, place)
        else:  # one that carries its scales
            self.tensors[name] = place
            self._object(name, tensor, place)


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _own(item: Any) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in vars(item).items() if key not in _IGNORED]


def _looks(item: Any, foreign: bool) -> tuple:
    """All that may change in a module or an object except the contents of tensors; quick to compare.

    Objects stand here by their ids, which are theirs only as long as they live.
    """
    attributes = vars(item)
    values = list(map(attributes.get, _WATCHED))
    if foreign:
        values += [_frozen(value) for _, value in _own(item)]
    if not isinstance(item, nn.Module):
        return type(item), len(attributes), values
    members = [*attributes["_parameters"].values(), *attributes["_buffers"].values(), *attributes["_modules"].values()]
    hooks = len(attributes["_forward_hooks"]), len(attributes["_forward_pre_hooks"])
    forward = id(type(item).forward), id(attributes.get("forward")), id(attributes.get("_hf_hook"))
    return type(item), values, list(map(id, members)), hooks, forward


def _frozen(value: Any) -> Any:
    """A copy of plain values as JSON can hold them; other objects by their ids."""
    if isinstance(value, _SIMPLE) and not isinstance(value, Enum):
        return value
    if isinstance(value, Mapping):
        return {str(key): _frozen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_frozen(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, _PLAIN):
        return repr(value)
    return id(value)
