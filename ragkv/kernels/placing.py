"""Keys rotated to their places, and values beside them, in one pass over memory."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ragkv.kernels import on_its_gpu
from ragkv.kernels.blocks import blocks_of, to_gpu
from ragkv.kernels.elementwise import turned

ROWS = 32  # tokens of a block, the fastest of those tried on an H100


@on_its_gpu
def write(
    room: tuple[Tensor, Tensor],
    fresh: tuple[Tensor, Tensor],
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
) -> None:
    """Keys, rotated to `positions`, and values into the `slots` of `room`.

    Parameters
    ----------
    room
        Keys and values, ``(1, kv_heads, tokens, head_dim)`` each, of the same strides.
    fresh
        ``(1, kv_heads, fresh, head_dim)`` each, keys before rotation.
    cos, sin
        Of every position, ``(1, positions, head_dim)`` in float32.
    positions, slots
        ``(fresh,)``.
    """
    keys, values = fresh
    _, kv_heads, count, head_dim = keys.shape
    if count:
        rows = 16
        _write[(triton.cdiv(count, rows), kv_heads)](
            keys, values, cos, sin, positions, slots, *room, keys.stride()[1:], values.stride()[1:],
            room[0].stride()[1:], count, HALF=head_dim // 2, WIDTH=triton.next_power_of_2(head_dim // 2), ROWS=rows,
        )  # fmt: skip


@on_its_gpu
def placing(
    segments: Sequence[Tensor], rooms: Sequence[tuple[Tensor, Tensor]], cos: Tensor, sin: Tensor
) -> Callable[[range, int], None]:
    """A function that places several segments side by side from position 0 on, some layers by one kernel.

    Parameters
    ----------
    segments
        On the GPU, ``(layers, 2, kv_heads, tokens, head_dim)`` each, contiguous, keys before rotation.
    rooms
        Every layer's keys and values, ``(1, kv_heads, slots, head_dim)`` each, heads and slots without gaps.

    Returns
    -------
    function
        Takes a range of the rooms' layers, and the segments' layer that goes to the first of them.
    """
    like, count = segments[0], len(segments)  # on the GPU that places, where not all rooms need be
    _, kv_heads, slots, head_dim = rooms[0][0].shape
    lengths = np.array([states.shape[3] for states in segments])
    number, first = blocks_of(lengths, ROWS)
    step = np.array([states.stride(0) * states.itemsize for states in segments])
    sources = np.array([states.data_ptr() for states in segments]) + np.arange(len(segments[0]))[:, None] * step
    places = np.array([[states.data_ptr() for states in room] for room in rooms])
    parts = (sources.ravel(), places.ravel(), lengths, lengths.cumsum() - lengths, number, first)
    told = to_gpu(parts, like.device)

    def place(layers: range, source: int) -> None:
        with torch.cuda.device_of(like):
            _place[(kv_heads * len(number) * len(layers),)](
                *told, cos, sin, like, count, slots * head_dim, kv_heads, len(number), source, layers.start,
                HALF=head_dim // 2, WIDTH=triton.next_power_of_2(head_dim // 2), ROWS=ROWS,
            )  # fmt: skip

    return place


@triton.jit
def _write(
    keys, values, cos, sin, positions, slots, room_keys, room_values, key_strides, value_strides, room_strides, count,
    HALF: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A block of tokens of one KV head."""
    token, dims = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    head = tl.program_id(1).to(tl.int64)
    there = (token < count)[:, None] & (dims < HALF)[None, :]
    angle = tl.load(positions + token, token < count, 0).to(tl.int64)[:, None] * (2 * HALF) + dims[None, :]
    slot = tl.load(slots + token, token < count, 0).to(tl.int64)
    token = token.to(tl.int64)
    key = keys + head * key_strides[0] + token[:, None] * key_strides[1] + dims[None, :]
    value = values + head * value_strides[0] + token[:, None] * value_strides[1] + dims[None, :]
    to = head * room_strides[0] + slot[:, None] * room_strides[1] + dims[None, :]
    left, right = turned(tl.load(key, there), tl.load(key + HALF, there), cos, sin, angle, there, HALF)
    kind = room_keys.dtype.element_ty
    tl.store(room_keys + to, left.to(kind), there)
    tl.store(room_keys + to + HALF, right.to(kind), there)
    tl.store(room_values + to, tl.load(value, there), there)
    tl.store(room_values + to + HALF, tl.load(value + HALF, there), there)


@triton.jit
def _place(
    sources, places, lengths, starts, number, first, cos, sin, like, segments, head_step, kv_heads, blocks,
    source_layer, layer, HALF: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A block of one segment's tokens, of one KV head in one layer; heads, which turn by the same angles, in a row."""
    head, rest = (tl.program_id(0) % kv_heads).to(tl.int64), tl.program_id(0) // kv_heads
    block, layer, source_layer = rest % blocks, layer + rest // blocks, source_layer + rest // blocks
    segment, dims = tl.load(number + block), tl.arange(0, WIDTH)
    kind = tl.pointer_type(like.dtype.element_ty)
    length = tl.load(lengths + segment)
    source = tl.load(sources + source_layer * segments + segment).to(kind)
    room_keys, room_values = tl.load(places + 2 * layer).to(kind), tl.load(places + 2 * layer + 1).to(kind)
    token = tl.load(first + block) + tl.arange(0, ROWS)
    there = (token < length)[:, None] & (dims < HALF)[None, :]
    slot = tl.load(starts + segment) + token
    angle = slot[:, None] * (2 * HALF) + dims[None, :]
    key = source + (head * length + token)[:, None] * (2 * HALF) + dims[None, :]
    value = key + kv_heads * length * (2 * HALF)
    to = head * head_step + angle
    left, right = turned(tl.load(key, there), tl.load(key + HALF, there), cos, sin, angle, there, HALF)
    tl.store(room_keys + to, left.to(like.dtype.element_ty), there)
    tl.store(room_keys + to + HALF, right.to(like.dtype.element_ty), there)
    tl.store(room_values + to, tl.load(value, there), there)
    tl.store(room_values + to + HALF, tl.load(value + HALF, there), there)
