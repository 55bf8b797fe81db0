"""What decides a model's results but cannot be known: each is refused, with a message that says what to do."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_CORE = (  # run in steps by `ragkv.models.decoder`, which knows their classes
    "model layers self_attn mlp input_layernorm post_attention_layernorm pre_feedforward_layernorm "
    "post_feedforward_layernorm q_norm k_norm norm rotary_emb"
).split()
_PROJECTIONS = (
    "q_proj k_proj v_proj qkv_proj o_proj gate_proj up_proj gate_up_proj down_proj lm_head embed_tokens".split()
)
_RECORDING = "transformers.utils.output_capturing"  # its hooks record outputs and change nothing


def autocast() -> None:
    """Refuse to compute in another dtype than the model's."""
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            raise ValueError(
                f"autocast is on for {device}, so keys and values would be computed in another precision than the "
                "model's: leave torch.autocast, and load the model in the dtype that it shall have"
            )


def global_hook(hook: Callable | None) -> None:
    """Refuse a hook that runs in all modules."""
    if hook is not None:
        raise ValueError(
            f"a forward hook of all modules, {name_of(hook)}, may change what they compute, so stored keys and values "
            "cannot be trusted: remove the hook"
        )


def hooks(name: str, module: nn.Module) -> None:
    """Refuse a module with hooks that run in its forward."""
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        if getattr(hook, "__module__", "") != _RECORDING:
            raise ValueError(
                f"{_where(name)} has a forward hook, {name_of(hook)}, which may change what it computes, so stored "
                "keys and values cannot be trusted: remove the hook (call remove() on the handle of its registration)"
            )


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` made this module."""
    return type(module).__module__ == "torch._dynamo.eval_frame"


def forward(name: str, module: nn.Module, foreign: bool) -> None:
    """Refuse a forward that is not the one of the module's class."""
    own = type(module).forward
    definer = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    replaced = not foreign and definer is not nn.Module and _defined_in(own) != _defined_in(definer)
    instance = vars(module).get("forward")
    if instance is not None and "_hf_hook" in vars(module):  # by accelerate, see below
        _accelerate(name, module._hf_hook)
        instance = vars(module).get("_old_forward")
    if instance is not None:
        instance = getattr(instance, "_torchdynamo_orig_callable", instance)  # by torch.compile
        replaced |= getattr(instance, "__self__", None) is not module or instance.__func__ is not own
    if replaced:
        raise ValueError(
            f"the forward of {_where(name)} was replaced by {name_of(instance or own)}, so what it computes cannot be "
            "known: load the model again, without what replaced it"
        )


def _defined_in(item: Any) -> str:
    return getattr(item, "__module__", "")


def _accelerate(name: str, hook: Any) -> None:
    """Refuse accelerate's hooks, except those that only move tensors between devices."""
    for each in getattr(hook, "hooks", (hook,)):
        if type(each).__name__ != "AlignDevicesHook":
            raise ValueError(
                f"{_where(name)} has accelerate's {type(each).__name__}, which may change what it computes: load the "
                "model without it"
            )


def foreign(name: str, module: nn.Module, inside_foreign: bool) -> None:
    """Refuse a class that transformers does not use, where the layers' steps rely on the class."""
    place = name.rpartition(".")[2]
    if not inside_foreign and (not name or place in _CORE or place.isdigit()):
        raise ValueError(
            f"{_where(name)} is of the class {name_of(type(module))}, which transformers does not use there: load the "
            "model without what replaced it"
        )
    if type(module).__name__ == "Linear8bitLt":
        raise ValueError(
            f"{name} is one of bitsandbytes' 8-bit projections, whose result for a token depends on the tokens that "
            "are computed with it, so stored keys and values would not fit: use 4-bit weights, or torchao's quantize_"
        )
    if not inside_foreign and place in _PROJECTIONS and not isinstance(getattr(module, "weight", None), Tensor):
        raise ValueError(
            f"{name} is of the class {name_of(type(module))}, which keeps its weight where it cannot be read: use the "
            "model as it was before it was quantised, or one quantised by torchao's quantize_"
        )


def training(name: str, module: nn.Module, foreign: bool, attention_dropout: float) -> None:
    """Refuse training mode where it changes results."""
    if not module.training:
        return
    reason = ""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        reason = f"{name} has a dropout of {module.p}" if module.p else ""
    elif attention_dropout:
        reason = f"its attention has a dropout of {attention_dropout}"
    elif getattr(module, "gradient_checkpointing", False):
        reason = "gradient checkpointing switches its cache off"
    elif foreign and not type(module).__module__.startswith("torch.nn.modules."):
        reason = f"{name} is of the class {name_of(type(module))}"
    if reason:
        raise ValueError(f"the model is in training mode, and {reason}: call model.eval() first")


def attribute(name: str, value: Any) -> None:
    """Refuse an attribute of a foreign module that is neither data nor code with a name."""
    raise ValueError(
        f"{name} holds an object of the class {name_of(type(value))}, and what it computes cannot be known: keep only "
        "numbers, text, tensors and modules there, or merge the adapter into the model's weights"
    )


def tensor(name: str, tensor: Tensor) -> None:
    """Refuse a tensor whose bits cannot be read."""
    if tensor.device.type == "meta":
        raise ValueError("some weights are offloaded: give device_map only devices whose memory holds them")
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise ValueError(f"{name} is a {kind} tensor, whose bits cannot be read: use a model of ordinary tensors")


def _where(name: str) -> str:
    return name or "the model"


def name_of(item: Any) -> str:
    """The full name of a class, a function or an object's class."""
    return f"{_defined_in(item)}.{getattr(item, '__qualname__', type(item).__qualname__)}"
