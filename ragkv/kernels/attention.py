"""Position-causal attention in Triton: a tile of queries reads no key beyond its highest position.

The heads that share a KV head lie side by side in a tile: row = query * group + head in the group. So a tile spans few
positions, which keeps its masked part small, and K and V are read once for a whole group. Where there are too few
tiles to fill the GPU, each goes over the keys in parts, which a second kernel brings together.
"""

from functools import cache
from math import ceil, log
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ragkv.kernels import on_its_gpu

LN_2 = log(2)
LOWEST = tl.constexpr(-1e30)  # below any product, yet finite: a row that sees none of a part's keys gets no NaN


class Config(NamedTuple):
    """How the kernels are compiled for a head dimension and dtype."""

    rows: int  # of a tile: queries times the heads of a group
    keys: int  # of a block
    warps: int
    stages: int  # blocks of keys and values on their way at a time
    resident: int = 1  # tiles at a time on one multiprocessor


def config(head_dim: int, dtype: torch.dtype, rows: int = 2**20) -> Config:
    """The fastest of those tried on an H200, for head dimensions of 128; for others, what fits into shared memory.

    `rows` are those of all tiles of a KV head: small tiles where there are few.
    """
    if dtype == torch.float32:
        return Config(64, 32, 4, 2)
    if rows <= 256:
        return Config(16 if rows <= 16 else 64, 64, 4, 3, 2)
    if head_dim <= 64:
        return Config(128, 128, 4, 2, 2)
    return Config(128, 128, 8, 3) if head_dim <= 128 else Config(128, 64, 8, 2)


def fitting(chosen: Config, head_dim: int, dtype: torch.dtype, memory: int) -> Config:
    """The same, with fewer stages and smaller blocks where a multiprocessor has only `memory` bytes to share."""
    row = width(head_dim) * dtype.itemsize
    smaller = [chosen, *(chosen._replace(keys=min(chosen.keys, keys), stages=2) for keys in (128, 64, 32))]
    smaller += [chosen._replace(rows=rows, keys=32, stages=stages) for rows in (64, 32, 16) for stages in (2, 1)]
    smaller.append(Config(16, 16, 4, 1))
    return next((one for one in smaller if (one.rows + 2 * one.stages * one.keys) * row <= memory), smaller[-1])


def tile(query: Tensor, key: Tensor) -> Config:
    """How to compile for these shapes on their GPU."""
    head_dim, rows = key.shape[3], query.shape[1] // key.shape[1] * query.shape[2]
    return fitting(config(head_dim, key.dtype, rows), head_dim, key.dtype, _gpu(key.device)[1])


@cache
def _gpu(device: torch.device) -> tuple[int, int]:
    """A GPU's multiprocessors, and the bytes that one has to share; of none, what the interpreter is tested with."""
    if device.type != "cuda":
        return 8, 2**18
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, getattr(found, "shared_memory_per_block_optin", 2**16)  # AMD says none


@on_its_gpu
def position_causal(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scaling: float, *, tuned: Config | None = None
) -> Tensor:
    """Position-causal attention: see `ragkv.models.attention` for the arguments; `scaling` is positive.

    Queries at position -1, before all others, do not count: their result is finite, no more.
    """
    chosen = tuned or tile(query, key)
    return _attention(query, key, value, positions, scaling, chosen, split(query, key, chosen))[0]


@on_its_gpu
def attention_sums(
    query: Tensor, key: Tensor, value: Tensor | None, positions: Tensor, scaling: float, chosen: Config
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Attention, and what its softmax was divided by: sums and maxima over each part of the keys.

    Returns
    -------
    attended
        As `position_causal`; None without `value`.
    totals, peaks
        ``(parts, batch, queries, heads)``: the sum of ``2 ** (product - peak)``, products in units of ln 2.
    """
    return _attention(query, key, value, positions, scaling, chosen, split(query, key, chosen), sums=True)


def _attention(query, key, value, positions, scaling, chosen: Config, parts: int, sums: bool = False):
    (_, heads, queries, head_dim), (batch, kv_heads, tokens, _) = query.shape, key.shape
    group, device, query = heads // kv_heads, key.device, query.expand(batch, -1, -1, -1)
    kept = (2, parts, batch, queries, heads) if sums or parts > 1 else (2, 1)
    totals, peaks = torch.zeros(kept, device=device)
    out = torch.empty(batch, queries, heads, head_dim, dtype=query.dtype, device=device) if value is not None else None
    results = torch.empty(parts, *out.shape, device=device) if out is not None and parts > 1 else out
    part_keys = triton.cdiv(triton.cdiv(tokens, parts), chosen.keys) * chosen.keys
    values = value if value is not None else key
    _attend[(triton.cdiv(queries * group, chosen.rows) * parts * batch * kv_heads,)](
        query, key, values, positions, results if results is not None else totals, totals, peaks,
        query.stride()[:3], key.stride()[:3], values.stride()[:3],
        batch, heads, queries, tokens, part_keys, scaling / LN_2,
        GROUP=group, HEAD_DIM=head_dim, WIDTH=width(head_dim), ROWS=chosen.rows, KEYS=chosen.keys, PARTS=parts,
        VALUES=out is not None, SUMS=len(kept) > 2, num_warps=chosen.warps, num_stages=chosen.stages,
    )  # fmt: skip
    if out is not None and parts > 1:
        _join[(batch * queries * heads,)](
            results, totals, peaks, positions, out, queries, heads, part_keys,
            HEAD_DIM=head_dim, WIDTH=width(head_dim), PARTS=parts, PARTS_2=triton.next_power_of_2(parts),
        )  # fmt: skip
    return out.transpose(1, 2) if out is not None else None, totals, peaks


def width(head_dim: int) -> int:
    """A tile's width: a power of two."""
    return max(16, triton.next_power_of_2(head_dim))


def split(query: Tensor, key: Tensor, chosen: Config) -> int:
    """Into how many parts the keys go so that all multiprocessors are busy, judged by the shapes alone.

    Where tiles are many, the light ones fill up what the heavy ones leave. Where they are few, time goes in waves, and
    each wave takes a part's keys and some more for the tile's beginning and end.
    """
    (_, heads, queries, _), (batch, kv_heads, tokens, _) = query.shape, key.shape
    tiles = triton.cdiv(heads // kv_heads * queries, chosen.rows) * batch * kv_heads
    places = _gpu(key.device)[0] * chosen.resident
    if tiles >= 2 * places:
        return 1
    most = max(1, min(64, tokens // (4 * chosen.keys)))
    return min(range(1, most + 1), key=lambda n: ceil(tiles * n / places) * (tokens / n + 2 * chosen.keys))


@triton.jit
def _over_keys(
    total, peak, result, query, where, key, value, key_step, value_step, start, stop, tokens, factor,
    HEAD_DIM: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """The running softmax over the blocks of keys from `start` to `stop`."""
    dims, block = tl.arange(0, query.shape[1]), tl.arange(0, KEYS)
    for here in tl.range(start, stop, KEYS):
        inside = (dims < HEAD_DIM)[None, :] & ((here + block < tokens)[:, None] | (not MASKED))
        key_at = tl.cast(here, tl.int64) * key_step + block[:, None] * key_step + dims[None, :]
        products = tl.dot(query, tl.load(key + key_at, inside, 0.0).T, input_precision="ieee")
        if MASKED:
            products = tl.where(where[:, None] >= (here + block)[None, :], products, float("-inf"))
        higher = tl.maximum(peak, tl.max(products, 1) * factor)
        weights = tl.exp2(products * factor - higher[:, None])
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(weights, 1)
        peak = higher
        if VALUES:
            value_at = tl.cast(here, tl.int64) * value_step + block[:, None] * value_step + dims[None, :]
            values = tl.load(value + value_at, inside, 0.0)
            result = tl.dot(weights.to(values.dtype), values, result * shrink[:, None], input_precision="ieee")
    return total, peak, result


@triton.jit
def _attend(
    query, key, value, positions, out, totals, peaks, query_strides, key_strides, value_strides,
    batch, heads, queries, tokens, part_keys, factor,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PARTS: tl.constexpr, VALUES: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """One tile of queries over one part of the keys. Tiles with high positions take longest, and come first."""
    kv_heads = heads // GROUP
    kv_head, rest = tl.program_id(0) % kv_heads, tl.program_id(0) // kv_heads
    item, rest = rest % batch, rest // batch
    part, tile = rest % PARTS, tl.cdiv(queries * GROUP, ROWS) - 1 - rest // PARTS
    row = tile * ROWS + tl.arange(0, ROWS)
    asked, head, dims = row // GROUP, kv_head * GROUP + row % GROUP, tl.arange(0, WIDTH)
    there = asked < queries
    where = tl.load(positions + tl.minimum(asked, queries - 1)).to(tl.int32)  # a tile's empty rows repeat the last one
    highest = tl.max(where)
    lowest = tl.min(tl.where(where >= 0, where, highest))  # rows at no position may see what all others see
    start = part * part_keys
    stop = tl.minimum(start + part_keys, highest + 1)
    if (start >= stop) & ((part > 0) | (highest >= 0)):  # a tile that sees nothing at all says so in its first part
        return
    seen = tl.maximum(start, tl.minimum(stop, (lowest + 1) // KEYS * KEYS))  # by all of the tile's queries

    item, kv_head, asked, head = item.to(tl.int64), kv_head.to(tl.int64), asked.to(tl.int64), head.to(tl.int64)
    query_at = item * query_strides[0] + head * query_strides[1] + asked * query_strides[2]
    tile_query = tl.load(query + query_at[:, None] + dims[None, :], there[:, None] & (dims < HEAD_DIM)[None, :], 0.0)
    key += item * key_strides[0] + kv_head * key_strides[1]
    value += item * value_strides[0] + kv_head * value_strides[1]
    total, peak = tl.zeros([ROWS], tl.float32), tl.full([ROWS], LOWEST, tl.float32)
    result = tl.zeros([ROWS, WIDTH], tl.float32)
    total, peak, result = _over_keys(
        total, peak, result, tile_query, where, key, value, key_strides[2], value_strides[2], start, seen, tokens,
        factor, HEAD_DIM, KEYS, False, VALUES,
    )  # fmt: skip
    total, peak, result = _over_keys(
        total, peak, result, tile_query, where, key, value, key_strides[2], value_strides[2], seen, stop, tokens,
        factor, HEAD_DIM, KEYS, True, VALUES,
    )  # fmt: skip

    to = ((part * batch + item) * queries + asked) * heads + head
    if PARTS == 1:
        result = result / tl.where(total > 0, total, 1.0)[:, None]
    if SUMS:
        tl.store(totals + to, total, there)
        tl.store(peaks + to, peak, there)
    if VALUES:
        tl.store(
            out + (to * HEAD_DIM)[:, None] + dims[None, :],
            result.to(out.dtype.element_ty),
            there[:, None] & (dims < HEAD_DIM)[None, :],
        )


@triton.jit
def _join(
    results, totals, peaks, positions, out, queries, heads, part_keys,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, PARTS_2: tl.constexpr,
):  # fmt: skip
    """One head's result for one query from those of the parts that it sees keys in."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    part, dims = tl.arange(0, PARTS_2), tl.arange(0, WIDTH)
    there = part <= tl.maximum(tl.load(positions + row // heads % queries), 0) // part_keys
    at = part * rows + row
    peak = tl.load(peaks + at, there, float("-inf"))
    share = tl.exp2(peak - tl.max(peak))
    inside = there[:, None] & (dims < HEAD_DIM)[None, :]
    result = tl.load(results + (at * HEAD_DIM)[:, None] + dims[None, :], inside, 0.0)
    total = tl.sum(share * tl.load(totals + at, there, 0.0))
    result = tl.sum(share[:, None] * result, 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + row * HEAD_DIM + dims, result.to(out.dtype.element_ty), dims < HEAD_DIM)
