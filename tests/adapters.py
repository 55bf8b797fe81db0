"""Small stand-ins for what other libraries put in place of a model's projections and weights."""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear


class Lora(nn.Module):
    """Low-rank adapters by name over a projection, of which one is active."""

    def __init__(self, base: nn.Linear, names: tuple[str, ...] = ("first", "second"), p: float = 0.0):
        super().__init__()
        self.base = base
        self.scaling = dict.fromkeys(names, 0.5)
        self.active = [names[0]]
        self.enabled = True
        self.p = p
        self.down = nn.ParameterDict({name: torch.randn(4, base.in_features) / 8 for name in names})
        self.up = nn.ParameterDict({name: torch.randn(base.out_features, 4) / 2 for name in names})
        self.train(base.training).requires_grad_(False)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, hidden: Tensor) -> Tensor:
        out = self.base(hidden)
        for name in self.active if self.enabled else ():
            inputs = dropout(hidden, self.p, self.training)
            out = out + self.scaling[name] * (inputs @ self.down[name].T @ self.up[name].T)
        return out


class Int8Linear(nn.Module):
    """A projection whose weight is int8 numbers and a scale for each row; both are buffers."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        scale = base.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (base.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if base.bias is None else base.bias.clone())
        self.train(base.training)

    def forward(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.weight * self.scale, self.bias)


class ScaledTensor(Tensor):
    """A weight that is made of two other tensors, as quantised weights of torchao are."""

    @staticmethod
    def __new__(cls, numbers: Tensor, scale: Tensor) -> "ScaledTensor":
        return Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers: Tensor, scale: Tensor):
        self.numbers = numbers
        self.scale = scale
        self.block = [1, numbers.shape[1]]

    def __tensor_flatten__(self) -> tuple[list[str], dict]:
        return ["numbers", "scale"], {"block": self.block}

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].numbers, args[0].scale)
        plain = [item.numbers * item.scale if isinstance(item, cls) else item for item in args]
        return func(*plain, **(kwargs or {}))


def replace(model: nn.Module, name: str, kind: type, *arguments: object) -> nn.Module:
    """Put `kind` in the place of a projection of layer 1, which is returned."""
    attention = model.model.layers[1].self_attn
    setattr(attention, name, kind(getattr(attention, name), *arguments))
    return getattr(attention, name)
