"""Stored keys rotated to their places, and values beside them, in one pass over memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def place(keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Keys rotated to positions ``0 .. stored - 1`` and values, with room for all `tokens`.

    Parameters
    ----------
    keys, values
        ``(1, kv_heads, stored, head_dim)``, keys before rotation.
    cos, sin
        Of every position, ``(1, tokens, head_dim)`` in float32.

    Returns
    -------
    keys, values
        ``(1, kv_heads, tokens, head_dim)``; what is behind the stored ones is not set.
    """
    _, kv_heads, stored, head_dim = keys.shape
    placed = torch.empty(2, 1, kv_heads, tokens, head_dim, dtype=keys.dtype, device=keys.device)
    if stored:
        rows = 64
        _place[(triton.cdiv(stored, rows), kv_heads)](
            keys, values, cos, sin, placed[0], placed[1], keys.stride()[1:], values.stride()[1:], stored, tokens,
            HALF=head_dim // 2, WIDTH=triton.next_power_of_2(head_dim // 2), ROWS=rows,
        )  # fmt: skip
    return placed[0], placed[1]


@triton.jit
def _place(
    keys, values, cos, sin, placed_keys, placed_values, key_strides, value_strides, stored, tokens,
    HALF: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A block of tokens of one KV head. The two halves of a head's dimensions rotate with each other."""
    token, dims = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    head = tl.program_id(1).to(tl.int64)
    there = (token < stored)[:, None] & (dims < HALF)[None, :]
    token = token.to(tl.int64)
    angle = token[:, None] * (2 * HALF) + dims[None, :]
    key = head * key_strides[0] + token[:, None] * key_strides[1] + dims[None, :]
    value = head * value_strides[0] + token[:, None] * value_strides[1] + dims[None, :]
    to = (head * tokens + token[:, None]) * (2 * HALF) + dims[None, :]
    left = tl.load(keys + key, there).to(tl.float32)
    right = tl.load(keys + key + HALF, there).to(tl.float32)
    turned_left = left * tl.load(cos + angle, there) - right * tl.load(sin + angle, there)
    turned_right = right * tl.load(cos + angle + HALF, there) + left * tl.load(sin + angle + HALF, there)
    kind = placed_keys.dtype.element_ty
    tl.store(placed_keys + to, turned_left.to(kind), there)
    tl.store(placed_keys + to + HALF, turned_right.to(kind), there)
    tl.store(placed_values + to, tl.load(values + value, there), there)
    tl.store(placed_values + to + HALF, tl.load(values + value + HALF, there), there)
