"""Write keys and values to their places in the cache; keys are rotated to their positions on the way."""

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ragkv.kernels import early_start, on_its_gpu
from ragkv.kernels.blocks import ALIGNMENT, aligned, blocks_of, to_gpu
from ragkv.kernels.early import wait_for_previous
from ragkv.kernels.elementwise import channels, rotate_halves

WRITE_ROWS = 16  # tokens per program of `write`
PLACE_ROWS = 32  # tokens per program of `placing`, the fastest of those tried on an H100


@on_its_gpu
def write(
    cache: tuple[Tensor, Tensor],
    fresh: tuple[Tensor, Tensor],
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
) -> None:
    """Write freshly computed keys, rotated to `positions`, and values into `slots` of one layer of the cache.

    Parameters
    ----------
    cache
        Keys and values, ``(1, kv_heads, slots, head_dim)`` each, with equal strides.
    fresh
        Keys before rotation and values, ``(1, kv_heads, fresh, head_dim)`` each.
    cos, sin
        Of every position, ``(1, positions, width)`` in float32: as many of a head's channels are rotated.
    positions, slots
        ``(fresh,)``.
    """
    keys, values = fresh
    cached_keys, cached_values = cache
    _, kv_heads, count, head_dim = keys.shape
    if count:
        _write[(triton.cdiv(count, WRITE_ROWS), kv_heads)](
            keys, values, cos, sin, positions, slots, cached_keys, cached_values,
            keys.stride()[1:], values.stride()[1:], cached_keys.stride()[1:], count,
            ROWS=WRITE_ROWS, **channels(cos, head_dim), **early_start(keys, count),
        )  # fmt: skip


@on_its_gpu
def placing(
    segments: Sequence[Tensor],
    positions: Sequence[int],
    slots: Sequence[int],
    caches: Sequence[tuple[Tensor, Tensor]],
    angles: Sequence[tuple[Tensor, Tensor]],
) -> Callable[[range, int], None]:
    """Make a function that writes segments into the cache, several layers at once.

    Parameters
    ----------
    segments
        Keys before rotation and values on the GPU, contiguous, ``(layers, 2, kv_heads, tokens, head_dim)`` each.
    positions, slots
        Of each segment's first token: the position that its key is rotated to, and its slot in the cache. The
        segment's other tokens follow it.
    caches
        Keys and values of every layer, ``(1, kv_heads, slots, head_dim)`` each, with contiguous heads and slots. Those
        of layers that are never written may be on another GPU.
    angles
        Cosines and sines of every layer, ``(1, positions, width)`` each in float32: of every position, for as many of a
        head's channels as are rotated. Neighbouring layers with the same tensors are written by one kernel.

    Returns
    -------
    function
        Its arguments are the range of the cache's layers to write, and the segments' layer that goes to the first.
    """
    like = segments[0]  # for its GPU and dtype
    _, kv_heads, cache_slots, head_dim = caches[0][0].shape
    lengths = np.array([states.shape[3] for states in segments])
    block_segments, block_tokens = blocks_of(lengths, PLACE_ROWS)

    # Addresses of each layer of each segment, (layers, segments), and of each layer's keys and values, (layers, 2).
    layer_bytes = np.array([states.stride(0) * states.itemsize for states in segments])
    bases = np.array([states.data_ptr() for states in segments])
    sources = bases + np.arange(len(like))[:, None] * layer_bytes
    targets = np.array([[states.data_ptr() for states in cache] for cache in caches])

    all_aligned = aligned(sources, targets, head_dim * like.itemsize)
    first_tokens = (np.array(positions), np.array(slots))
    tables = (sources.ravel(), targets.ravel(), lengths, *first_tokens, block_segments, block_tokens)
    gpu_tables = to_gpu(tables, like.device)
    blocks = len(block_segments)

    def place(layers: range, source_layer: int) -> None:
        with torch.cuda.device_of(like):
            for _, group in groupby(layers, lambda layer: id(angles[layer][0])):
                alike = list(group)
                cos, sin = angles[alike[0]]
                _place[(kv_heads * blocks * len(alike),)](
                    *gpu_tables, cos, sin, like, len(segments), cache_slots * head_dim, kv_heads, blocks,
                    source_layer + alike[0] - layers.start, alike[0],
                    ROWS=PLACE_ROWS, ALIGNED=all_aligned, **channels(cos, head_dim),
                )  # fmt: skip

    return place


@triton.jit
def _write(
    keys, values, cos, sin, positions, slots, cached_keys, cached_values, key_strides, value_strides, cache_strides,
    count, HALF: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, REST_WIDTH: tl.constexpr, ROWS: tl.constexpr,
    EARLY: tl.constexpr = False,
):  # fmt: skip
    """A block of tokens of one KV head."""
    wait_for_previous(EARLY)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1).to(tl.int64)
    dims = tl.arange(0, WIDTH)
    valid = (token < count)[:, None] & (dims < HALF)[None, :]
    position = tl.load(positions + token, token < count, 0).to(tl.int64)
    slot = tl.load(slots + token, token < count, 0).to(tl.int64)
    angle = position[:, None] * (2 * HALF) + dims[None, :]
    token = token.to(tl.int64)
    key_row = keys + head * key_strides[0] + token[:, None] * key_strides[1]
    value_row = values + head * value_strides[0] + token[:, None] * value_strides[1]
    target_row = head * cache_strides[0] + slot[:, None] * cache_strides[1]
    key = key_row + dims[None, :]
    value = value_row + dims[None, :]
    target = target_row + dims[None, :]
    left, right = rotate_halves(
        tl.load(key, valid), tl.load(key + HALF, valid), cos, sin, angle, valid, HALF
    )  # fmt: skip
    dtype = cached_keys.dtype.element_ty
    tl.store(cached_keys + target, left.to(dtype), valid)
    tl.store(cached_keys + target + HALF, right.to(dtype), valid)
    tl.store(cached_values + target, tl.load(value, valid), valid)
    tl.store(cached_values + target + HALF, tl.load(value + HALF, valid), valid)
    if REST:
        passed = tl.arange(0, REST_WIDTH)
        valid_passed = (token < count)[:, None] & (passed < REST)[None, :]
        passed += 2 * HALF
        target = target_row + passed[None, :]
        tl.store(cached_keys + target, tl.load(key_row + passed[None, :], valid_passed), valid_passed)
        tl.store(cached_values + target, tl.load(value_row + passed[None, :], valid_passed), valid_passed)


@triton.jit
def _place(
    sources, targets, lengths, positions, slots, block_segments, block_tokens, cos, sin, like, segments, head_step,
    kv_heads, blocks, source_layer, layer,
    HALF: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, REST_WIDTH: tl.constexpr, ROWS: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """A block of one segment's tokens, for one KV head of one layer.

    Programs of neighbouring heads follow each other, as they rotate by the same angles.
    """
    head = (tl.program_id(0) % kv_heads).to(tl.int64)
    rest = tl.program_id(0) // kv_heads
    block = rest % blocks
    layer += rest // blocks
    source_layer += rest // blocks
    segment = tl.load(block_segments + block)
    length = tl.load(lengths + segment)
    dims = tl.arange(0, WIDTH)

    dtype = like.dtype.element_ty
    source = tl.load(sources + source_layer * segments + segment).to(tl.pointer_type(dtype))
    cached_keys = tl.load(targets + 2 * layer).to(tl.pointer_type(dtype))
    cached_values = tl.load(targets + 2 * layer + 1).to(tl.pointer_type(dtype))
    if ALIGNED:
        source = tl.multiple_of(source, ALIGNMENT)
        cached_keys = tl.multiple_of(cached_keys, ALIGNMENT)
        cached_values = tl.multiple_of(cached_values, ALIGNMENT)

    token = tl.load(block_tokens + block) + tl.arange(0, ROWS)
    valid = (token < length)[:, None] & (dims < HALF)[None, :]
    slot = tl.load(slots + segment) + token
    position = tl.load(positions + segment) + token
    angle = position[:, None] * (2 * HALF) + dims[None, :]
    head_dim: tl.constexpr = 2 * HALF + REST
    key_row = source + (head * length + token)[:, None] * head_dim
    value_row = key_row + kv_heads * length * head_dim
    target_row = head * head_step + slot[:, None] * head_dim
    key = key_row + dims[None, :]
    value = value_row + dims[None, :]
    target = target_row + dims[None, :]
    left, right = rotate_halves(
        tl.load(key, valid), tl.load(key + HALF, valid), cos, sin, angle, valid, HALF
    )  # fmt: skip
    tl.store(cached_keys + target, left.to(dtype), valid)
    tl.store(cached_keys + target + HALF, right.to(dtype), valid)
    tl.store(cached_values + target, tl.load(value, valid), valid)
    tl.store(cached_values + target + HALF, tl.load(value + HALF, valid), valid)
    if REST:
        passed = tl.arange(0, REST_WIDTH)
        valid_passed = (token < length)[:, None] & (passed < REST)[None, :]
        passed += 2 * HALF
        target = target_row + passed[None, :]
        tl.store(cached_keys + target, tl.load(key_row + passed[None, :], valid_passed), valid_passed)
        tl.store(cached_values + target, tl.load(value_row + passed[None, :], valid_passed), valid_passed)
