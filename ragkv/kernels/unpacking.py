"""Codes and scales of a store's smaller formats made keys and values again, on the GPU, by one kernel for a part."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ragkv.kernels import on_its_gpu
from ragkv.kernels.blocks import blocks_of, to_gpu

ROWS = 32  # tokens of a block


@on_its_gpu
def unpacking(codes: Sequence[Tensor], numbers: Sequence[Tensor], format: str, packed: int) -> Callable[[int], None]:
    """A function that unpacks so many layers of several segments, bit for bit as `ragkv.store.quantize` does.

    Parameters
    ----------
    codes
        Each segment's, ``(bytes,)``, all in one piece of memory: of a layer codes, scales of keys, scales of values.
    numbers
        Where each segment goes, ``(layers, 2, kv_heads, tokens, head_dim)``, all in another piece.
    format, packed
        ``fp8``, ``int8`` or ``int4``, and how many numbers its codes hold each.
    """
    _, _, kv_heads, _, head_dim = numbers[0].shape
    lengths = np.array([states.shape[3] for states in numbers])
    number, first = blocks_of(lengths, ROWS)
    told = to_gpu((lengths, _offsets(codes), _offsets(numbers), number, first), codes[0].device)

    def unpack(count: int) -> None:
        with torch.cuda.device_of(codes[0]):
            _unpack[(kv_heads * len(number) * count,)](
                codes[0], numbers[0], *told, kv_heads, len(number),
                HEAD_DIM=head_dim, WIDTH=triton.next_power_of_2(head_dim), ROWS=ROWS,
                PACKED=packed, FORMAT=format,
            )  # fmt: skip

    return unpack


def _offsets(tensors: Sequence[Tensor]) -> np.ndarray:
    """Where each lies behind the first, in numbers."""
    return np.array([tensor.storage_offset() - tensors[0].storage_offset() for tensor in tensors])


@triton.jit
def _unpack(
    codes, numbers, lengths, sources, places, number, first, kv_heads, blocks,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, PACKED: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    """A block of one segment's tokens, of one KV head in one layer."""
    head, rest = (tl.program_id(0) % kv_heads).to(tl.int64), tl.program_id(0) // kv_heads
    block, layer = rest % blocks, (rest // blocks).to(tl.int64)
    segment, dims = tl.load(number + block), tl.arange(0, WIDTH)
    length = tl.load(lengths + segment)
    half = kv_heads * length * (HEAD_DIM // PACKED)  # codes of keys, or of values
    source = codes + tl.load(sources + segment) + layer * (2 * half + kv_heads * (HEAD_DIM + length))
    to = numbers + tl.load(places + segment) + layer * (2 * kv_heads * length * HEAD_DIM)
    token = tl.load(first + block) + tl.arange(0, ROWS)
    there, row = (token < length)[:, None] & (dims < HEAD_DIM)[None, :], head * length + token
    key_scale = _power(tl.load(source + 2 * half + head * HEAD_DIM + dims, dims < HEAD_DIM, 0))
    value_scale = _power(tl.load(source + 2 * half + kv_heads * HEAD_DIM + row, token < length, 0))
    at = row[:, None] * (HEAD_DIM // PACKED) + dims[None, :] // PACKED
    key = _number(tl.load(source + at, there, 0), dims, FORMAT) * key_scale[None, :]
    value = _number(tl.load(source + half + at, there, 0), dims, FORMAT) * value_scale[:, None]
    place = row[:, None] * HEAD_DIM + dims[None, :]
    tl.store(to + place, key.to(numbers.dtype.element_ty), there)
    tl.store(to + kv_heads * length * HEAD_DIM + place, value.to(numbers.dtype.element_ty), there)


@triton.jit
def _number(code, dims, FORMAT: tl.constexpr):
    """A code's number in float32."""
    if FORMAT == "int8":
        number = code.to(tl.int8, bitcast=True).to(tl.float32)
    elif FORMAT == "int4":
        number = ((code.to(tl.int32) >> (dims % 2 * 4)[None, :]) & 15).to(tl.float32) - 8
    else:  # e4m3, also where the GPU has none: sixteen powers of two, the smallest without a leading one
        bits = code.to(tl.int32)
        power, rest = (bits >> 3) & 15, bits & 7
        size = tl.where(power > 0, rest + 8, rest) << (tl.maximum(power, 1) - 1)
        number = size.to(tl.float32) * tl.where(bits > 127, -0.001953125, 0.001953125)  # 2**-9
    return number


@triton.jit
def _power(exponent):
    """Two to the power of a signed byte from -126 to 127, in float32."""
    return ((exponent.to(tl.int8, bitcast=True).to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
