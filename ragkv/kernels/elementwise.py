"""What lies between a layer's matrix products, each in one pass over memory, rounded as transformers rounds it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ragkv.kernels import on_its_gpu


@on_its_gpu
def rotate(states: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding.

    Parameters
    ----------
    states
        ``(1, heads, tokens, head_dim)``.
    cos, sin
        Of every position, ``(1, positions, head_dim)`` in float32.
    positions
        ``(tokens,)``.
    """
    _, heads, tokens, head_dim = states.shape
    rotated, rows = torch.empty_like(states), 16
    if tokens:
        _rotate[(triton.cdiv(tokens, rows), heads)](
            states, cos, sin, positions, rotated, states.stride()[1:], rotated.stride()[1:], tokens,
            HALF=head_dim // 2, WIDTH=triton.next_power_of_2(head_dim // 2), ROWS=rows,
        )  # fmt: skip
    return rotated


@on_its_gpu
def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last dimension, ``(..., width)``."""
    hidden = hidden.contiguous()
    normed, width = torch.empty_like(hidden), hidden.shape[-1]
    if hidden.numel():
        _rms_norm[(hidden.numel() // width,)](
            hidden, weight, normed, width, eps, WIDTH=triton.next_power_of_2(width), num_warps=8
        )
    return normed


@on_its_gpu
def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, of contiguous tensors of one shape."""
    product, block = torch.empty_like(gate), 4096
    if gate.numel():
        _gated[(triton.cdiv(gate.numel(), block),)](gate, up, product, gate.numel(), BLOCK=block, num_warps=8)
    return product


@triton.jit
def turned(left, right, cos, sin, angle, there, HALF: tl.constexpr):
    """The two halves of heads' dimensions, which rotate with each other, in float32."""
    left, right = left.to(tl.float32), right.to(tl.float32)
    turned_left = left * tl.load(cos + angle, there) - right * tl.load(sin + angle, there)
    turned_right = right * tl.load(cos + angle + HALF, there) + left * tl.load(sin + angle + HALF, there)
    return turned_left, turned_right


@triton.jit
def _rotate(
    states, cos, sin, positions, rotated, strides, rotated_strides, tokens,
    HALF: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    token, dims = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    head = tl.program_id(1).to(tl.int64)
    there = (token < tokens)[:, None] & (dims < HALF)[None, :]
    where = tl.load(positions + token, token < tokens, 0).to(tl.int64)
    token = token.to(tl.int64)
    angle = where[:, None] * (2 * HALF) + dims[None, :]
    at = states + head * strides[0] + token[:, None] * strides[1] + dims[None, :]
    to = rotated + head * rotated_strides[0] + token[:, None] * rotated_strides[1] + dims[None, :]
    left, right = turned(tl.load(at, there), tl.load(at + HALF, there), cos, sin, angle, there, HALF)
    kind = to.dtype.element_ty
    tl.store(to, left.to(kind), there)
    tl.store(to + HALF, right.to(kind), there)


@triton.jit
def _rms_norm(hidden, weight, normed, width, eps, WIDTH: tl.constexpr):
    row, dims = tl.program_id(0).to(tl.int64) * width, tl.arange(0, WIDTH)
    states = tl.load(hidden + row + dims, dims < width, 0.0).to(tl.float32)
    scale = 1 / tl.sqrt_rn(tl.sum(states * states) / width + eps)
    kind = normed.dtype.element_ty
    scaled = (states * scale).to(kind) * tl.load(weight + dims, dims < width, 0.0).to(kind)
    tl.store(normed + row + dims, scaled.to(kind), dims < width)


@triton.jit
def _gated(gate, up, product, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    open_ = tl.load(gate + at, at < count, 0.0)
    lit = (open_.to(tl.float32) / (1 + tl.exp(-open_.to(tl.float32)))).to(open_.dtype)
    tl.store(product + at, (lit * tl.load(up + at, at < count, 0.0)).to(product.dtype.element_ty), at < count)
