"""Rotary embedding, norm and gate: one pass over memory each, with the same rounding as transformers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ragkv.kernels import on_its_gpu

ROTATE_ROWS = 16  # tokens per program
GATE_BLOCK = 4096  # numbers per program


@on_its_gpu
def rotate(states: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding.

    Parameters
    ----------
    states
        ``(batch, heads, tokens, head_dim)``.
    cos, sin
        Of every position, ``(1, positions, head_dim)`` in float32.
    positions
        ``(tokens,)``.
    """
    batch, heads, tokens, head_dim = states.shape
    rotated = torch.empty_like(states)
    if tokens:
        _rotate[(triton.cdiv(tokens, ROTATE_ROWS), heads, batch)](
            states, cos, sin, positions, rotated, states.stride()[:3], rotated.stride()[:3], tokens,
            HALF=head_dim // 2, WIDTH=triton.next_power_of_2(head_dim // 2), ROWS=ROTATE_ROWS,
        )  # fmt: skip
    return rotated


@on_its_gpu
def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last dimension, ``(..., width)``."""
    hidden = hidden.contiguous()
    normed = torch.empty_like(hidden)
    width = hidden.shape[-1]
    if hidden.numel():
        _rms_norm[(hidden.numel() // width,)](
            hidden, weight, normed, width, eps, WIDTH=triton.next_power_of_2(width), num_warps=8
        )
    return normed


@on_its_gpu
def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, for contiguous tensors of the same shape."""
    product = torch.empty_like(gate)
    count = gate.numel()
    if count:
        _gated[(triton.cdiv(count, GATE_BLOCK),)](gate, up, product, count, BLOCK=GATE_BLOCK, num_warps=8)
    return product


@triton.jit
def rotate_halves(left, right, cos, sin, angle, valid, HALF: tl.constexpr):
    """Rotate the two halves of the heads' channels against each other, in float32.

    `angle` are offsets into the tables `cos` and `sin`.
    """
    left = left.to(tl.float32)
    right = right.to(tl.float32)
    rotated_left = left * tl.load(cos + angle, valid) - right * tl.load(sin + angle, valid)
    rotated_right = right * tl.load(cos + angle + HALF, valid) + left * tl.load(sin + angle + HALF, valid)
    return rotated_left, rotated_right


@triton.jit
def _rotate(
    states, cos, sin, positions, rotated, strides, rotated_strides, tokens,
    HALF: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A block of tokens of one head."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1).to(tl.int64)
    item = tl.program_id(2).to(tl.int64)
    dims = tl.arange(0, WIDTH)
    valid = (token < tokens)[:, None] & (dims < HALF)[None, :]
    position = tl.load(positions + token, token < tokens, 0).to(tl.int64)
    angle = position[:, None] * (2 * HALF) + dims[None, :]
    token = token.to(tl.int64)
    states += item * strides[0] + head * strides[1]
    rotated += item * rotated_strides[0] + head * rotated_strides[1]
    source = states + token[:, None] * strides[2] + dims[None, :]
    target = rotated + token[:, None] * rotated_strides[2] + dims[None, :]
    left, right = rotate_halves(
        tl.load(source, valid), tl.load(source + HALF, valid), cos, sin, angle, valid, HALF
    )  # fmt: skip
    dtype = target.dtype.element_ty
    tl.store(target, left.to(dtype), valid)
    tl.store(target + HALF, right.to(dtype), valid)


@triton.jit
def _rms_norm(hidden, weight, normed, width, eps, WIDTH: tl.constexpr):
    """One row."""
    row = tl.program_id(0).to(tl.int64) * width
    dims = tl.arange(0, WIDTH)
    states = tl.load(hidden + row + dims, dims < width, 0.0).to(tl.float32)
    scale = 1 / tl.sqrt_rn(tl.sum(states * states) / width + eps)
    dtype = normed.dtype.element_ty
    scaled = (states * scale).to(dtype) * tl.load(weight + dims, dims < width, 0.0).to(dtype)
    tl.store(normed + row + dims, scaled.to(dtype), dims < width)


@triton.jit
def _gated(gate, up, product, count, BLOCK: tl.constexpr):
    """A block of numbers."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = index < count
    gates = tl.load(gate + index, valid, 0.0)
    silu = (gates.to(tl.float32) / (1 + tl.exp(-gates.to(tl.float32)))).to(gates.dtype)
    ups = tl.load(up + index, valid, 0.0)
    tl.store(product + index, (silu * ups).to(product.dtype.element_ty), valid)
