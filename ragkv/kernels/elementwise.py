"""Rotary embedding, norm and gate: one pass over memory each, with the same rounding as transformers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ragkv.kernels import early_start, on_its_gpu
from ragkv.kernels.early import wait_for_previous

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
        Of every position, ``(1, positions, width)`` in float32: as many of a head's channels are rotated.
    positions
        ``(tokens,)``.
    """
    batch, heads, tokens, head_dim = states.shape
    rotated = torch.empty_like(states)
    if tokens:
        _rotate[(triton.cdiv(tokens, ROTATE_ROWS), heads, batch)](
            states, cos, sin, positions, rotated, states.stride()[:3], rotated.stride()[:3], tokens,
            ROWS=ROTATE_ROWS, **channels(cos, head_dim), **early_start(states, tokens),
        )  # fmt: skip
    return rotated


def channels(cos: Tensor, head_dim: int) -> dict[str, int]:
    """How the kernels divide the channels of a head: twice ``HALF`` of them are rotated, the ``REST`` is not."""
    half = cos.shape[-1] // 2
    rest = head_dim - 2 * half
    next_power = triton.next_power_of_2
    return {"HALF": half, "WIDTH": next_power(half), "REST": rest, "REST_WIDTH": next_power(rest) if rest else 0}


@on_its_gpu
def rms_norm(hidden: Tensor, weight: Tensor, eps: float, *, rounds_once: bool = False, offset: float = 0.0) -> Tensor:
    """Root mean square norm over the last dimension, ``(batch, tokens, ..., width)``.

    Parameters
    ----------
    rounds_once
        Multiply by the weight in float32. Otherwise the states are rounded to their dtype before that, too.
    offset
        Added to the weight; only together with `rounds_once`.
    """
    hidden = hidden.contiguous()
    normed = torch.empty_like(hidden)
    width = hidden.shape[-1]
    if hidden.numel():
        power = triton.next_power_of_2(width)
        _rms_norm[(hidden.numel() // width,)](
            hidden, weight, normed, width, eps,
            WIDTH=power, ROUNDS_ONCE=rounds_once, OFFSET=offset, num_warps=max(1, min(8, power // 512)),
            **early_start(hidden, hidden.shape[:2].numel()),
        )  # fmt: skip
    return normed


@on_its_gpu
def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, for tensors of the same shape: both contiguous, or the two halves of one last dimension."""
    product = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    count, width = gate.numel(), gate.shape[-1]
    if count:
        _gated[(triton.cdiv(count, GATE_BLOCK),)](
            gate, up, product, count, width, HALVES=not gate.is_contiguous(), BLOCK=GATE_BLOCK, num_warps=8
        )
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
    HALF: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, REST_WIDTH: tl.constexpr, ROWS: tl.constexpr,
    EARLY: tl.constexpr = False,
):  # fmt: skip
    """A block of tokens of one head."""
    wait_for_previous(EARLY)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1).to(tl.int64)
    item = tl.program_id(2).to(tl.int64)
    dims = tl.arange(0, WIDTH)
    valid = (token < tokens)[:, None] & (dims < HALF)[None, :]
    position = tl.load(positions + token, token < tokens, 0).to(tl.int64)
    angle = position[:, None] * (2 * HALF) + dims[None, :]
    token = token.to(tl.int64)
    source_row = states + item * strides[0] + head * strides[1] + token[:, None] * strides[2]
    target_row = rotated + item * rotated_strides[0] + head * rotated_strides[1] + token[:, None] * rotated_strides[2]
    source = source_row + dims[None, :]
    target = target_row + dims[None, :]
    left, right = rotate_halves(
        tl.load(source, valid), tl.load(source + HALF, valid), cos, sin, angle, valid, HALF
    )  # fmt: skip
    dtype = target.dtype.element_ty
    tl.store(target, left.to(dtype), valid)
    tl.store(target + HALF, right.to(dtype), valid)
    if REST:
        passed = tl.arange(0, REST_WIDTH)
        valid_passed = (token < tokens)[:, None] & (passed < REST)[None, :]
        passed += 2 * HALF
        tl.store(target_row + passed[None, :], tl.load(source_row + passed[None, :], valid_passed), valid_passed)


@triton.jit
def _rms_norm(
    hidden, weight, normed, width, eps, WIDTH: tl.constexpr, ROUNDS_ONCE: tl.constexpr, OFFSET: tl.constexpr,
    EARLY: tl.constexpr = False,
):  # fmt: skip
    """One row."""
    wait_for_previous(EARLY)
    row = tl.program_id(0).to(tl.int64) * width
    dims = tl.arange(0, WIDTH)
    states = tl.load(hidden + row + dims, dims < width, 0.0).to(tl.float32)
    scale = 1 / tl.sqrt_rn(tl.sum(states * states) / width + eps)
    dtype = normed.dtype.element_ty
    weights = tl.load(weight + dims, dims < width, 0.0)
    if ROUNDS_ONCE:
        scaled = states * scale * (weights.to(tl.float32) + OFFSET)
    else:
        scaled = (states * scale).to(dtype) * weights.to(dtype)
    tl.store(normed + row + dims, scaled.to(dtype), dims < width)


@triton.jit
def _gated(gate, up, product, count, width, HALVES: tl.constexpr, BLOCK: tl.constexpr):
    """A block of numbers."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = index < count
    source = index + index // width * width if HALVES else index  # the other half lies between two rows
    gates = tl.load(gate + source, valid, 0.0)
    silu = (gates.to(tl.float32) / (1 + tl.exp(-gates.to(tl.float32)))).to(gates.dtype)
    ups = tl.load(up + source, valid, 0.0)
    tl.store(product + index, (silu * ups).to(product.dtype.element_ty), valid)
