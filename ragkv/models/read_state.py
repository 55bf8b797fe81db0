"""Reading a model's state: all that decides what it computes.

A module that transformers builds from the configuration is described by the few attributes that its forward uses. Any
other module (an adapter, a quantised projection) is *foreign*: it is described by the code of its class and by all of
its attributes. What cannot be described could change unseen, so it is refused.
"""

from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from ragkv.models import code, refusals
from ragkv.models.families import FAMILIES, family_of
from ragkv.models.segment_pass import compute_segment
from ragkv.models.state import DECIDING, PLAIN, Place, State, frozen, global_hook, looks, own_attributes
from ragkv.prompt import Segment

CONFIG = (  # the parts of the configuration that decide
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim hidden_act max_position_embeddings rms_norm_eps rope_parameters attention_bias mlp_bias "
    "quantization_config"
).split()

# a memo: the configuration that each model had, and its state
_states: WeakKeyDictionary[PreTrainedModel, tuple[dict, State]] = WeakKeyDictionary()


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


def configuration(model: PreTrainedModel) -> dict[str, Any]:
    """The entries of the configuration that decide: `CONFIG` and its family's, as JSON can hold them."""
    names = [*CONFIG, *family_of(model).config]
    values: dict[str, Any] = {name: getattr(model.config, name, None) for name in names}
    return {name: frozen(value.to_dict() if hasattr(value, "to_dict") else value) for name, value in values.items()}


def _read(model: PreTrainedModel) -> State:
    refusals.global_hook(global_hook())
    state = _Reader(model.config).read(model)
    if any(foreign for _, foreign, _ in state.items):
        compute_segment(model, Segment((0, 0)))  # some foreign modules prepare their weights when they first run
        state = _Reader(model.config).read(model)
    return state


class _Reader:
    """Walks through a model and gathers its state."""

    def __init__(self, config: PretrainedConfig):
        self.values: dict[str, Any] = {}
        self.tensors: dict[str, Place] = {}
        self.items: list[tuple[Place, bool, tuple]] = []
        self.classes: dict[type, list] = {}
        family = FAMILIES[config.model_type]
        name = family.module or config.model_type
        self._modeling = f"transformers.models.{name}.modeling_{name}"
        self._activation = type(ACT2FN[getattr(config, family.activation)])
        self._dropouts = family.dropouts
        self._attention_dropout = getattr(config, "attention_dropout", 0.0)
        self._names: dict[int, str] = {}  # of what was read, by id
        self._alive: list[Any] = []  # what was read, so that its id stays its own meanwhile

    def read(self, model: PreTrainedModel) -> State:
        """Read a whole model."""
        self.module("", model)
        return State(self.values, self.tensors, self.items, self.classes)

    def module(self, name: str, module: nn.Module, inside_foreign: bool = False) -> None:
        """Read a module and all below it.

        Parameters
        ----------
        inside_foreign
            Whether it is part of a foreign module.
        """
        place = Place(ref(module))
        compiled = refusals.is_compiled(module)
        foreign = inside_foreign or not (compiled or self._is_built_in(name, module))
        if self._is_known(name, module, place, foreign):
            return
        refusals.hooks(name, module)
        if compiled:  # it computes what the module inside computes
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
            self.values |= {_join(name, key): attributes[key] for key in DECIDING if key in attributes}
        for kind in ("_parameters", "_buffers"):
            for key, tensor in attributes[kind].items():
                if tensor is not None:
                    self._tensor(_join(name, key), tensor, place.attribute(kind).item(key))
        for key, child in attributes["_modules"].items():
            if child is not None:
                self.module(_join(name, key), child, foreign)

    def _is_built_in(self, name: str, module: nn.Module) -> bool:
        """Whether transformers would use this class here; a subclass counts if it has the same forward."""
        kind = type(module)
        if kind is nn.Dropout:
            return name.rpartition(".")[2] in self._dropouts
        if kind in (nn.Linear, nn.Embedding, nn.ModuleList, self._activation):
            return True
        bases: list[Any] = [base for base in kind.__mro__ if base.__module__ == self._modeling]
        return bool(bases) and bases[0].forward is kind.forward

    def _is_known(self, name: str, item: Any, place: Place, foreign: bool) -> bool:
        """Whether this object was read before, under another name. If not, remember it."""
        first = self._names.setdefault(id(item), name)
        if first != name:
            self.values[name] = f"the same as {first}"
            return True
        self._alive.append(item)
        self.items.append((place, foreign, looks(item, foreign)))
        return False

    def _object(self, name: str, item: Any, place: Place) -> None:
        """Read the class and the attributes of a foreign module or another object."""
        self.values[name] = self._code(type(item))
        for key, value in own_attributes(item):
            self._attribute(f"{name}.{key}", value, place.attribute(key))

    def _attribute(self, name: str, value: Any, place: Place) -> None:
        if isinstance(value, PLAIN):
            self.values[name] = frozen(value)
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
        elif isinstance(value, set | frozenset) and all(isinstance(item, PLAIN) for item in value):
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
