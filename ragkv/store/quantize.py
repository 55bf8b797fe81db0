"""Smaller keys and values: eight or four bits each, and one byte per scale.

Keys have channels that are large for every token, values do not: so keys are scaled per head and channel, values per
head and token (as KIVI does, arXiv 2402.02750). Scales are powers of two: a byte each, and exact to divide by.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Codec:
    """How numbers of at most `largest` become codes, and codes numbers again.

    Attributes
    ----------
    codes
        The dtype of stored codes.
    packed
        Numbers per code, along the head's dimension.
    """

    largest: float
    codes: torch.dtype
    packed: int
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def _pack(numbers: Tensor) -> Tensor:
    """Two numbers from -7 to 7 in a byte, the even dimension in the low half."""
    shifted = (numbers.round() + 8).to(torch.uint8)
    return shifted[..., 0::2] | (shifted[..., 1::2] << 4)


def _unpack(codes: Tensor) -> Tensor:
    pairs = torch.stack((codes & 15, codes >> 4), dim=-1)  # (..., head_dim / 2, 2)
    return pairs.flatten(-2).float() - 8


CODECS = {
    "fp8": Codec(448.0, torch.float8_e4m3fn, 1, lambda x: x.to(torch.float8_e4m3fn), Tensor.float),
    "int8": Codec(127.0, torch.int8, 1, lambda x: x.round().to(torch.int8), Tensor.float),
    "int4": Codec(7.0, torch.uint8, 2, _pack, _unpack),
}
FORMATS = ("model", *CODECS)  # "model": as the model computed them


def check_format(name: str, head_dim: int = 2) -> None:
    """Refuse a format that there is not, or one that does not fit the heads.

    Raises
    ------
    ValueError
        The message lists the formats.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown store format {name!r}: choose one of {', '.join(FORMATS)}")
    if name in CODECS and head_dim % CODECS[name].packed:
        raise ValueError(f"store format {name!r} packs two numbers in a byte, heads of {head_dim} do not fit: use int8")


def number_size(name: str, computed: int) -> float:
    """Bytes that a number takes in a format, `computed` as the model gives it; scales not counted."""
    return CODECS[name].codes.itemsize / CODECS[name].packed if name in CODECS else computed


def quantize(layers: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and scales of a segment.

    Parameters
    ----------
    layers
        Keys before rotation and values, ``(layers, 2, kv_heads, tokens, head_dim)``.
    name
        One of `CODECS`.

    Returns
    -------
    codes
        ``(layers, 2, kv_heads, tokens, head_dim / packed)``.
    key_scales, value_scales
        Exponents of two in int8, ``(layers, kv_heads, head_dim)`` and ``(layers, kv_heads, tokens)``.

    Raises
    ------
    ValueError
        A key or value that is not finite has no scale.
    """
    codec, exact = CODECS[name], layers.float()
    if not exact.isfinite().all():
        broken = int((~exact.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ValueError(
            f"layer {broken} has keys or values that are not finite, so no scale fits them: was the model run in "
            "float16? Use bfloat16, or format 'model'"
        )
    keys, values = exact.unbind(1)  # (layers, kv_heads, tokens, head_dim)
    key_scales = _exponents(keys.abs().amax(-2), codec.largest)
    value_scales = _exponents(values.abs().amax(-1), codec.largest)
    scaled = torch.stack((torch.ldexp(keys, -key_scales[:, :, None]), torch.ldexp(values, -value_scales[..., None])), 1)
    return codec.encode(scaled), key_scales.to(torch.int8), value_scales.to(torch.int8)


def dequantize(codes: Tensor, key_scales: Tensor, value_scales: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """One layer's keys and values again, ``(2, kv_heads, tokens, head_dim)``; arguments as `quantize` gives them."""
    keys, values = CODECS[name].decode(codes)
    exponents = key_scales[:, None].int(), value_scales[..., None].int()
    return torch.stack((torch.ldexp(keys, exponents[0]), torch.ldexp(values, exponents[1]))).to(dtype)


def _exponents(largest: Tensor, limit: float) -> Tensor:
    """The smallest powers of two that bring `largest` to the codes' limit or below, as int32."""
    mantissa, exponent = torch.frexp(largest / limit)  # largest / limit = mantissa * 2**exponent, from 0.5 to below 1
    return (exponent - (mantissa == 0.5).int()).clamp(-126, 127)
