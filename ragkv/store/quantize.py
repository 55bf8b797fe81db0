"""Quantised keys and values: eight or four bits per number, and one byte per scale.

Some channels of the keys are large for every token; the values have no such channels. So keys have a scale per head
and channel, and values one per head and token, as in KIVI (arXiv 2402.02750). Scales are powers of two, which take one
byte and divide without rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Codec:
    """How scaled numbers become codes, and codes numbers again.

    Attributes
    ----------
    largest
        The largest magnitude that can be encoded.
    codes
        The dtype of the stored codes.
    packed
        Numbers per code, along the head dimension.
    encode, decode
        Numbers to codes, and codes to numbers in float32.
    """

    largest: float
    codes: torch.dtype
    packed: int
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def _pack(numbers: Tensor) -> Tensor:
    """Two numbers from -7 to 7 in a byte: the even channel in the low half, the odd one in the high half."""
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
    """Check that a format exists and fits the heads.

    Raises
    ------
    ValueError
        It does not; the message lists the formats.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown store format {name!r}: choose one of {', '.join(FORMATS)}")
    if name in CODECS and head_dim % CODECS[name].packed:
        raise ValueError(f"store format {name!r} packs two numbers in a byte, heads of {head_dim} do not fit: use int8")


def number_size(name: str, computed: int) -> float:
    """Bytes per number in a format, without scales; `computed` is the size of a number as the model computes it."""
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
        Some keys or values are not finite, so no scale fits them.
    """
    codec = CODECS[name]
    exact = layers.float()
    if not exact.isfinite().all():
        broken = int((~exact.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ValueError(
            f"layer {broken} has keys or values that are not finite, so no scale fits them: was the model run in "
            "float16? Use bfloat16, or format 'model'"
        )
    keys, values = exact.unbind(1)  # (layers, kv_heads, tokens, head_dim)
    key_scales = _exponents(keys.abs().amax(-2), codec.largest)
    value_scales = _exponents(values.abs().amax(-1), codec.largest)
    scaled_keys = torch.ldexp(keys, -key_scales[:, :, None])
    scaled_values = torch.ldexp(values, -value_scales[..., None])
    codes = codec.encode(torch.stack((scaled_keys, scaled_values), 1))
    return codes, key_scales.to(torch.int8), value_scales.to(torch.int8)


def packed_sizes(shape: Sequence[int], name: str) -> tuple[int, int, int]:
    """Bytes of a quantised layer of shape ``(2, kv_heads, tokens, head_dim)``: codes, scales of keys, of values."""
    _, kv_heads, tokens, head_dim = shape
    codes = 2 * kv_heads * tokens * (head_dim // CODECS[name].packed)
    return codes, kv_heads * head_dim, kv_heads * tokens


def unpack_layer(packed: Tensor, shape: Sequence[int], name: str, dtype: torch.dtype) -> Tensor:
    """One layer's keys and values in `shape`, ``(2, kv_heads, tokens, head_dim)``, from its bytes.

    Parameters
    ----------
    packed
        ``(bytes,)`` in uint8: codes, scales of keys and scales of values, one behind the other, as in `packed_sizes`.
    """
    codec = CODECS[name]
    _, kv_heads, tokens, head_dim = shape
    codes, key_scales, value_scales = packed.split(packed_sizes(shape, name))
    codes = codes.view(codec.codes).view(2, kv_heads, tokens, head_dim // codec.packed)
    key_scales = key_scales.view(torch.int8).view(kv_heads, head_dim)
    value_scales = value_scales.view(torch.int8).view(kv_heads, tokens)
    return dequantize(codes, key_scales, value_scales, name, dtype)


def dequantize(codes: Tensor, key_scales: Tensor, value_scales: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """One layer's keys and values, ``(2, kv_heads, tokens, head_dim)``, from the codes and scales of `quantize`."""
    keys, values = CODECS[name].decode(codes)
    keys = torch.ldexp(keys, key_scales[:, None].int())
    values = torch.ldexp(values, value_scales[..., None].int())
    return torch.stack((keys, values)).to(dtype)


def _exponents(largest: Tensor, limit: float) -> Tensor:
    """The exponents of the smallest powers of two whose product with `limit` is at least `largest`, in int32."""
    mantissa, exponent = torch.frexp(largest / limit)  # largest / limit = mantissa * 2**exponent, 0.5 <= mantissa < 1
    is_power_of_two = (mantissa == 0.5).int()
    return (exponent - is_power_of_two).clamp(-126, 127)
