"""Position-causal attention in Triton: a tile of queries reads no key beyond its highest position.

The heads that share a KV head lie side by side in a tile: row = query * group + head in the group. So a tile spans few
positions, which keeps its masked part small, and K and V are read once for a whole group. Where there are too few
tiles to fill the GPU, each goes over the keys in parts, which a second kernel brings together.
"""

from math import ceil, log
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LN_2 = log(2)
LOWEST = tl.constexpr(-1e30)  # below any product, yet finite: a row that sees none of a part's keys gets no NaN


class Config(NamedTuple):
    """How the kernels are compiled for a head dimension and dtype."""

    rows: int  # of a tile: queries times the heads of a group
    keys: int  # of a block
    warps: int
    stages: int  # blocks of keys and values on their way at a time
    resident: int = 1  # tiles at a time on one multiprocessor


def config(head_dim: int, dtype: torch.dtype) -> Config:
    """The fastest of those tried on an H200, for head dimensions of 128; for others, what fits into shared memory."""
    if dtype == torch.float32:
        return Config(64, 32, 4, 2)
    if head_dim <= 64:
        return Config(128, 128, 4, 2, 2)
    return Config(128, 128, 8, 3) if head_dim <= 128 else Config(128, 64, 8, 2)


def fitting(chosen: Config, head_dim: int, dtype: torch.dtype, memory: int) -> Config:
    """The same, with fewer stages and smaller blocks where a multiprocessor has only `memory` bytes to share."""
    row = _width(head_dim) * dtype.itemsize
    smaller = [chosen, *(chosen._replace(keys=min(chosen.keys, keys), stages=2) for keys in (128, 64, 32))]
    smaller += [chosen._replace(rows=rows, keys=32, stages=stages) for rows in (64, 32, 16) for stages in (2, 1)]
    smaller.append(Config(16, 16, 4, 1))
    return next((one for one in smaller if (one.rows + 2 * one.stages * one.keys) * row <= memory), smaller[-1])


def _config(key: Tensor, head_dim: int) -> Config:
    memory = 2**18
    if key.is_cuda:
        memory = getattr(torch.cuda.get_device_properties(key.device), "shared_memory_per_block_optin", 2**16)  # AMD
    return fitting(config(head_dim, key.dtype), head_dim, key.dtype, memory)


def position_causal(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scaling: float, *, tuned: Config | None = None
) -> Tensor:
    """Position-causal attention: see `ragkv.attention` for the arguments; `scaling` is positive."""
    (_, heads, queries, head_dim), batch = query.shape, key.shape[0]
    chosen = tuned or _config(key, head_dim)
    parts = _parts(query, key, chosen)
    out = torch.empty(batch, queries, heads, head_dim, dtype=query.dtype, device=query.device)
    if parts == 1:
        _run(query, key, value, positions, scaling, chosen, 1, out)
    else:
        results = torch.empty(parts, *out.shape, device=query.device)
        totals, peaks, part_keys = _run(query, key, value, positions, scaling, chosen, parts, results)
        _join[(batch * queries * heads,)](
            results, totals, peaks, positions, out, queries, heads, part_keys,
            HEAD_DIM=head_dim, WIDTH=_width(head_dim), PARTS=parts, PARTS_2=triton.next_power_of_2(parts),
        )  # fmt: skip
    return out.transpose(1, 2)


def attention_scores(
    query: Tensor, key: Tensor, positions: Tensor, scaling: float, power: float = 1.0, *, tuned: Config | None = None
) -> Tensor:
    """What `ragkv.attention.attention_weights` gives, without holding the weights: ``(heads, tokens)``, float32."""
    (_, heads, queries, head_dim), (_, kv_heads, tokens, _) = query.shape, key.shape
    query, key = query[:1], key[:1]
    chosen = tuned or _config(key, head_dim)
    totals, peaks, _ = _run(query, key, None, positions, scaling, chosen, _parts(query, key, chosen))
    levels = (totals.log2() + peaks).mul_(LN_2).logsumexp(0)[0].div_(LN_2)  # (queries, heads)
    out = torch.empty(heads, tokens, device=query.device)
    blocks = triton.cdiv(tokens, chosen.keys)
    first = torch.searchsorted(positions, torch.arange(blocks, device=positions.device) * chosen.keys)
    _sum_over_queries[(blocks * heads,)](
        query, key, positions, levels, first, out, query.stride()[1:], key.stride()[1:], heads, queries, tokens,
        scaling / LN_2, power, GROUP=heads // kv_heads, HEAD_DIM=head_dim, WIDTH=_width(head_dim),
        ROWS=64, KEYS=chosen.keys, num_warps=4, num_stages=2,
    )  # fmt: skip
    return out


def _width(head_dim: int) -> int:
    return max(16, triton.next_power_of_2(head_dim))


def _parts(query: Tensor, key: Tensor, chosen: Config) -> int:
    """Into how many parts the keys go so that all multiprocessors are busy, judged by the shapes alone.

    Where tiles are many, the light ones fill up what the heavy ones leave. Where they are few, time goes in waves, and
    each wave takes a part's keys and some more for the tile's beginning and end.
    """
    (_, heads, queries, _), (batch, kv_heads, tokens, _) = query.shape, key.shape
    processors = torch.cuda.get_device_properties(key.device).multi_processor_count if key.is_cuda else 8
    tiles, places = (
        triton.cdiv(heads // kv_heads * queries, chosen.rows) * batch * kv_heads,
        processors * chosen.resident,
    )
    if tiles >= 2 * places:
        return 1
    most = max(1, min(64, tokens // (4 * chosen.keys)))
    return min(range(1, most + 1), key=lambda n: ceil(tiles * n / places) * (tokens / n + 2 * chosen.keys))


def _run(query, key, value, positions, scaling, chosen: Config, parts: int, out: Tensor | None = None):
    """Start `_attend`; the parts' sums and maxima, ``(parts, batch, queries, heads)``, and how many keys a part has."""
    (_, heads, queries, head_dim), (batch, kv_heads, tokens, _) = query.shape, key.shape
    group, device = heads // kv_heads, key.device
    query = query.expand(batch, -1, -1, -1)
    totals, peaks = torch.zeros(2, parts, batch, queries, heads, device=device)
    part_keys = triton.cdiv(triton.cdiv(tokens, parts), chosen.keys) * chosen.keys
    tiles = triton.cdiv(queries * group, chosen.rows)
    _attend[(tiles * parts * batch * kv_heads,)](
        query, key, value if value is not None else key, positions, out if out is not None else totals, totals, peaks,
        query.stride()[:3], key.stride()[:3], (value if value is not None else key).stride()[:3],
        batch, heads, queries, tokens, part_keys, scaling / LN_2,
        GROUP=group, HEAD_DIM=head_dim, WIDTH=_width(head_dim), ROWS=chosen.rows, KEYS=chosen.keys, PARTS=parts,
        VALUES=value is not None, num_warps=chosen.warps, num_stages=chosen.stages,
    )  # fmt: skip
    return totals, peaks, part_keys


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
    PARTS: tl.constexpr, VALUES: tl.constexpr,
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
    lowest, highest = tl.min(where), tl.max(where)
    start = part * part_keys
    stop = tl.minimum(start + part_keys, highest + 1)
    if start >= stop:
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
    if PARTS == 1 and VALUES:
        result = result / total[:, None]
    else:
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
    there = part <= tl.load(positions + row // heads % queries) // part_keys
    at = part * rows + row
    peak = tl.load(peaks + at, there, float("-inf"))
    share = tl.exp2(peak - tl.max(peak))
    inside = there[:, None] & (dims < HEAD_DIM)[None, :]
    result = tl.load(results + (at * HEAD_DIM)[:, None] + dims[None, :], inside, 0.0)
    total = tl.sum(share * tl.load(totals + at, there, 0.0))
    result = tl.sum(share[:, None] * result, 0) / total
    tl.store(out + row * HEAD_DIM + dims, result.to(out.dtype.element_ty), dims < HEAD_DIM)


@triton.jit
def _sum_over_queries(
    query, key, positions, levels, first, out, query_strides, key_strides, heads, queries, tokens, factor, power,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The sum of one head's weights for a block of keys, over the queries at or behind the first of them."""
    head, block = (tl.program_id(0) % heads).to(tl.int64), tl.program_id(0) // heads
    here, dims = block * KEYS + tl.arange(0, KEYS), tl.arange(0, WIDTH)
    key_at = head // GROUP * key_strides[0] + here.to(tl.int64) * key_strides[1]
    keys = tl.load(key + key_at[:, None] + dims, (here < tokens)[:, None] & (dims < HEAD_DIM), 0.0)
    total = tl.zeros([KEYS], tl.float32)
    for start in tl.range(tl.load(first + block).to(tl.int32), queries, ROWS):
        asked = start + tl.arange(0, ROWS)
        there = asked < queries
        query_at = head * query_strides[0] + asked.to(tl.int64) * query_strides[1]
        part = tl.load(query + query_at[:, None] + dims, there[:, None] & (dims < HEAD_DIM), 0.0)
        level = tl.load(levels + asked * heads + head, there, float("inf"))
        where = tl.load(positions + asked, there, -1)
        products = tl.dot(part, keys.T, input_precision="ieee") * factor - level[:, None]
        total += tl.sum(tl.exp2(tl.where(where[:, None] >= here[None, :], products * power, float("-inf"))), 0)
    tl.store(out + head * tokens + here, total, here < tokens)
