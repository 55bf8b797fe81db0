"""Dequantise stored segments on the GPU: codes and scales become keys and values, by one kernel per layer group."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ragkv.kernels import on_its_gpu
from ragkv.kernels.blocks import ALIGNMENT, aligned, blocks_of, to_gpu

ROWS = 32  # tokens per program


@on_its_gpu
def unpacking(codes: Sequence[Tensor], numbers: Sequence[Tensor], format: str, packed: int) -> Callable[[int], None]:
    """Make a function that dequantises segments, with exactly the results of `ragkv.store.quantize.dequantize`.

    Parameters
    ----------
    codes
        Of each segment, ``(layers, bytes)``: codes, scales of keys, scales of values. Slices of one tensor, with each
        layer in one piece.
    numbers
        Where each segment's keys and values go, ``(layers, 2, kv_heads, tokens, head_dim)``. Slices of one tensor.
    format
        ``"fp8"``, ``"int8"`` or ``"int4"``.
    packed
        Numbers per code.

    Returns
    -------
    function
        Its argument is the number of layers, from the first on, to dequantise.
    """
    _, _, kv_heads, _, head_dim = numbers[0].shape
    lengths = np.array([states.shape[3] for states in numbers])
    block_segments, block_tokens = blocks_of(lengths, ROWS)
    blocks = len(block_segments)
    layer_steps = np.array([layers.stride(0) for layers in codes])
    code_offsets, number_offsets = _offsets(codes), _offsets(numbers)
    tables = (lengths, code_offsets, layer_steps, number_offsets // head_dim, block_segments, block_tokens)
    gpu_tables = to_gpu(tables, codes[0].device)

    def unpack(layers: int) -> None:
        with torch.cuda.device_of(codes[0]):
            _unpack[(kv_heads * blocks * layers,)](
                codes[0], numbers[0], *gpu_tables, kv_heads, blocks,
                HEAD_DIM=head_dim, WIDTH=triton.next_power_of_2(head_dim), ROWS=ROWS,
                PACKED=packed, FORMAT=format, ALIGNED=aligned(code_offsets, layer_steps),
            )  # fmt: skip

    return unpack


def _offsets(slices: Sequence[Tensor]) -> np.ndarray:
    """How many elements behind the first slice each slice begins."""
    return np.array([tensor.storage_offset() - slices[0].storage_offset() for tensor in slices])


@triton.jit
def _unpack(
    codes, numbers, lengths, code_offsets, layer_steps, number_rows, block_segments, block_tokens, kv_heads, blocks,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, PACKED: tl.constexpr, FORMAT: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """A block of one segment's tokens, for one KV head of one layer."""
    head = (tl.program_id(0) % kv_heads).to(tl.int64)
    rest = tl.program_id(0) // kv_heads
    block = rest % blocks
    layer = (rest // blocks).to(tl.int64)
    segment = tl.load(block_segments + block)
    length = tl.load(lengths + segment)
    dims = tl.arange(0, WIDTH)
    token = tl.load(block_tokens + block) + tl.arange(0, ROWS)
    row = head * length + token
    valid = (token < length)[:, None] & (dims < HEAD_DIM)[None, :]

    half = kv_heads * length * (HEAD_DIM // PACKED)  # the codes of the keys, and as many of the values
    start = tl.load(code_offsets + segment) + layer * tl.load(layer_steps + segment)
    if ALIGNED:
        start = tl.multiple_of(start, ALIGNMENT)
    source = codes + start
    key_scales = source + 2 * half
    value_scales = key_scales + kv_heads * HEAD_DIM
    key_scale = _power_of_two(tl.load(key_scales + head * HEAD_DIM + dims, dims < HEAD_DIM, 0))
    value_scale = _power_of_two(tl.load(value_scales + row, token < length, 0))

    code = row[:, None] * (HEAD_DIM // PACKED) + dims[None, :] // PACKED
    key = _decode(tl.load(source + code, valid, 0), dims, FORMAT) * key_scale[None, :]
    value = _decode(tl.load(source + half + code, valid, 0), dims, FORMAT) * value_scale[:, None]

    rows = kv_heads * length  # of the keys, and as many of the values
    key_row = tl.load(number_rows + segment) + layer * (2 * rows) + row
    dtype = numbers.dtype.element_ty
    tl.store(numbers + key_row[:, None] * HEAD_DIM + dims[None, :], key.to(dtype), valid)
    tl.store(numbers + (key_row + rows)[:, None] * HEAD_DIM + dims[None, :], value.to(dtype), valid)


@triton.jit
def _decode(code, dims, FORMAT: tl.constexpr):
    """The number that a code stands for, in float32."""
    if FORMAT == "int8":
        number = code.to(tl.int8, bitcast=True).to(tl.float32)
    elif FORMAT == "int4":
        number = ((code.to(tl.int32) >> (dims % 2 * 4)[None, :]) & 15).to(tl.float32) - 8
    else:
        # e4m3 in integers, as some GPUs have no such dtype: a sign, four bits of exponent, three of mantissa. Numbers
        # with exponent 0 have no implicit leading one.
        bits = code.to(tl.int32)
        exponent = (bits >> 3) & 15
        mantissa = bits & 7
        magnitude = tl.where(exponent > 0, mantissa + 8, mantissa) << (tl.maximum(exponent, 1) - 1)
        number = magnitude.to(tl.float32) * tl.where(bits > 127, -0.001953125, 0.001953125)  # 2**-9
    return number


@triton.jit
def _power_of_two(exponent):
    """Two to the power of a signed byte from -126 to 127, in float32."""
    return ((exponent.to(tl.int8, bitcast=True).to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
