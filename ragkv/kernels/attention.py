"""Position-causal attention in Triton: a tile of queries reads no key beyond its highest position.

The heads that share a KV head are interleaved in a tile: row = query * group + head within the group. So a tile covers
few positions, which keeps its masked part small, and keys and values are read once for a whole group. Where there are
too few tiles to fill the GPU, the keys are split into parts, and a second kernel joins the parts' results.
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
LOWEST = tl.constexpr(-1e30)  # below any product but finite: a row that sees none of a part's keys gets no NaN


class Config(NamedTuple):
    """How the kernels are compiled.

    Attributes
    ----------
    rows
        Of a tile: queries times the heads of a group.
    keys
        Of a block.
    warps
        Per program.
    stages
        Blocks of keys and values in flight at a time.
    resident
        Tiles at a time on one multiprocessor.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    resident: int = 1


def config(head_dim: int, dtype: torch.dtype, rows: int = 2**20) -> Config:
    """The configuration for a head dimension and dtype.

    For head dimensions of 128 it is the fastest of those tried on an H200, for others what fits into shared memory.
    `rows` is the number of rows of all tiles of a KV head; if there are few, tiles are small.
    """
    if dtype == torch.float32:
        return Config(64, 32, 4, 2)
    if rows <= 256:
        return Config(16 if rows <= 16 else 64, 64, 4, 3, 2)
    if head_dim <= 64:
        return Config(128, 128, 4, 2, 2)
    return Config(128, 128, 8, 3) if head_dim <= 128 else Config(128, 64, 8, 2)


def fitting(chosen: Config, head_dim: int, dtype: torch.dtype, memory: int) -> Config:
    """The configuration, with fewer stages and smaller blocks if a multiprocessor has only `memory` shared bytes."""
    row_bytes = width(head_dim) * dtype.itemsize
    candidates = [chosen, *(chosen._replace(keys=min(chosen.keys, keys), stages=2) for keys in (128, 64, 32))]
    candidates += [chosen._replace(rows=rows, keys=32, stages=stages) for rows in (64, 32, 16) for stages in (2, 1)]
    candidates.append(Config(16, 16, 4, 1))

    def fits(candidate: Config) -> bool:
        return (candidate.rows + 2 * candidate.stages * candidate.keys) * row_bytes <= memory

    return next(filter(fits, candidates), candidates[-1])


def tile(query: Tensor, key: Tensor) -> Config:
    """The configuration for these shapes on their GPU."""
    head_dim = key.shape[3]
    group = query.shape[1] // key.shape[1]
    _, shared_memory = _gpu(key.device)
    return fitting(config(head_dim, key.dtype, group * query.shape[2]), head_dim, key.dtype, shared_memory)


@cache
def _gpu(device: torch.device) -> tuple[int, int]:
    """A GPU's number of multiprocessors, and the shared memory of each in bytes; on a CPU, values for tests."""
    if device.type != "cuda":
        return 8, 2**18
    properties = torch.cuda.get_device_properties(device)
    shared_memory = getattr(properties, "shared_memory_per_block_optin", 2**16)  # AMD GPUs do not report it
    return properties.multi_processor_count, shared_memory


@on_its_gpu
def position_causal(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scaling: float, *, tuned: Config | None = None
) -> Tensor:
    """Position-causal attention: see `ragkv.models.attention` for the arguments; `scaling` is positive.

    Queries at position -1, which come before all others, are padding: their output is finite but has no meaning.
    """
    chosen = tuned or tile(query, key)
    return _attention(query, key, value, positions, scaling, chosen, split(query, key, chosen))[0]


@on_its_gpu
def attention_sums(
    query: Tensor, key: Tensor, value: Tensor | None, positions: Tensor, scaling: float, chosen: Config
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Attention, with the running sums and maxima of its softmax over each part of the keys.

    Returns
    -------
    attended
        As `position_causal`; None without `value`.
    totals, peaks
        ``(parts, batch, queries, heads)``: the sum of ``2 ** (product - peak)``, with products in units of ln 2.
    """
    return _attention(query, key, value, positions, scaling, chosen, split(query, key, chosen), sums=True)


def _attention(query, key, value, positions, scaling, chosen: Config, parts: int, sums: bool = False):
    _, heads, queries, head_dim = query.shape
    batch, kv_heads, tokens, _ = key.shape
    group = heads // kv_heads
    device = key.device
    query = query.expand(batch, -1, -1, -1)
    store_sums = sums or parts > 1
    totals, peaks = torch.zeros((2, parts, batch, queries, heads) if store_sums else (2, 1), device=device)
    out = results = None
    if value is not None:
        out = torch.empty(batch, queries, heads, head_dim, dtype=query.dtype, device=device)
        results = torch.empty(parts, *out.shape, device=device) if parts > 1 else out
    part_keys = triton.cdiv(triton.cdiv(tokens, parts), chosen.keys) * chosen.keys
    values = value if value is not None else key
    _attend[(triton.cdiv(queries * group, chosen.rows) * parts * batch * kv_heads,)](
        query, key, values, positions, results if results is not None else totals, totals, peaks,
        query.stride()[:3], key.stride()[:3], values.stride()[:3],
        batch, heads, queries, tokens, part_keys, scaling / LN_2,
        GROUP=group, HEAD_DIM=head_dim, WIDTH=width(head_dim), ROWS=chosen.rows, KEYS=chosen.keys, PARTS=parts,
        VALUES=out is not None, SUMS=store_sums, num_warps=chosen.warps, num_stages=chosen.stages,
    )  # fmt: skip
    if out is not None and parts > 1:
        _join[(batch * queries * heads,)](
            results, totals, peaks, positions, out, queries, heads, part_keys,
            HEAD_DIM=head_dim, WIDTH=width(head_dim), PARTS=parts, PARTS_2=triton.next_power_of_2(parts),
        )  # fmt: skip
    return out.transpose(1, 2) if out is not None else None, totals, peaks


def width(head_dim: int) -> int:
    """The width of a tile, a power of two."""
    return max(16, triton.next_power_of_2(head_dim))


def split(query: Tensor, key: Tensor, chosen: Config) -> int:
    """The number of parts that the keys are split into, from the shapes alone, so that all multiprocessors are busy.

    With many tiles, light ones fill the gaps that heavy ones leave, and one part is enough. With few tiles the GPU
    works in waves; a wave takes as long as a part's keys and the overhead of a tile.
    """
    _, heads, queries, _ = query.shape
    batch, kv_heads, tokens, _ = key.shape
    tiles = triton.cdiv(heads // kv_heads * queries, chosen.rows) * batch * kv_heads
    multiprocessors, _ = _gpu(key.device)
    at_a_time = multiprocessors * chosen.resident
    if tiles >= 2 * at_a_time:
        return 1
    most = max(1, min(64, tokens // (4 * chosen.keys)))

    def duration(parts: int) -> float:
        waves = ceil(tiles * parts / at_a_time)
        return waves * (tokens / parts + 2 * chosen.keys)

    return min(range(1, most + 1), key=duration)


@triton.jit
def _over_keys(
    total, peak, result, query, position, key, value, key_step, value_step, start, stop, tokens, factor,
    HEAD_DIM: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """The running softmax over the blocks of keys from `start` to `stop`."""
    dims = tl.arange(0, query.shape[1])
    block = tl.arange(0, KEYS)
    for first in tl.range(start, stop, KEYS):
        valid = (dims < HEAD_DIM)[None, :] & ((first + block < tokens)[:, None] | (not MASKED))
        key_at = tl.cast(first, tl.int64) * key_step + block[:, None] * key_step + dims[None, :]
        products = tl.dot(query, tl.load(key + key_at, valid, 0.0).T, input_precision="ieee")
        if MASKED:
            products = tl.where(position[:, None] >= (first + block)[None, :], products, float("-inf"))
        higher = tl.maximum(peak, tl.max(products, 1) * factor)
        weights = tl.exp2(products * factor - higher[:, None])
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(weights, 1)
        peak = higher
        if VALUES:
            value_at = tl.cast(first, tl.int64) * value_step + block[:, None] * value_step + dims[None, :]
            values = tl.load(value + value_at, valid, 0.0)
            result = tl.dot(weights.to(values.dtype), values, result * shrink[:, None], input_precision="ieee")
    return total, peak, result


@triton.jit
def _attend(
    query, key, value, positions, out, totals, peaks, query_strides, key_strides, value_strides,
    batch, heads, queries, tokens, part_keys, factor,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PARTS: tl.constexpr, VALUES: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """One tile of queries over one part of the keys. Tiles with high positions take longest, so they come first."""
    kv_heads = heads // GROUP
    kv_head = tl.program_id(0) % kv_heads
    rest = tl.program_id(0) // kv_heads
    item = rest % batch
    rest = rest // batch
    part = rest % PARTS
    tile = tl.cdiv(queries * GROUP, ROWS) - 1 - rest // PARTS
    row = tile * ROWS + tl.arange(0, ROWS)
    query_index = row // GROUP
    head = kv_head * GROUP + row % GROUP
    dims = tl.arange(0, WIDTH)
    valid = query_index < queries
    # The rows that fill up the last tile repeat its last query; they are not stored.
    position = tl.load(positions + tl.minimum(query_index, queries - 1)).to(tl.int32)
    highest = tl.max(position)
    lowest = tl.min(tl.where(position >= 0, position, highest))  # padding may see whatever all others see
    start = part * part_keys
    stop = tl.minimum(start + part_keys, highest + 1)
    if (start >= stop) & ((part > 0) | (highest >= 0)):  # a tile of padding alone is stored by its first part
        return
    all_see = tl.maximum(start, tl.minimum(stop, (lowest + 1) // KEYS * KEYS))  # keys before this need no mask

    item = item.to(tl.int64)
    kv_head = kv_head.to(tl.int64)
    query_index = query_index.to(tl.int64)
    head = head.to(tl.int64)
    query_at = item * query_strides[0] + head * query_strides[1] + query_index * query_strides[2]
    valid_query = valid[:, None] & (dims < HEAD_DIM)[None, :]
    tile_query = tl.load(query + query_at[:, None] + dims[None, :], valid_query, 0.0)
    key += item * key_strides[0] + kv_head * key_strides[1]
    value += item * value_strides[0] + kv_head * value_strides[1]
    total = tl.zeros([ROWS], tl.float32)
    peak = tl.full([ROWS], LOWEST, tl.float32)
    result = tl.zeros([ROWS, WIDTH], tl.float32)
    total, peak, result = _over_keys(
        total, peak, result, tile_query, position, key, value, key_strides[2], value_strides[2], start, all_see, tokens,
        factor, HEAD_DIM, KEYS, False, VALUES,
    )  # fmt: skip
    total, peak, result = _over_keys(
        total, peak, result, tile_query, position, key, value, key_strides[2], value_strides[2], all_see, stop, tokens,
        factor, HEAD_DIM, KEYS, True, VALUES,
    )  # fmt: skip

    target = ((part * batch + item) * queries + query_index) * heads + head
    if PARTS == 1:
        result = result / tl.where(total > 0, total, 1.0)[:, None]
    if SUMS:
        tl.store(totals + target, total, valid)
        tl.store(peaks + target, peak, valid)
    if VALUES:
        tl.store(
            out + (target * HEAD_DIM)[:, None] + dims[None, :],
            result.to(out.dtype.element_ty),
            valid[:, None] & (dims < HEAD_DIM)[None, :],
        )


@triton.jit
def _join(
    results, totals, peaks, positions, out, queries, heads, part_keys,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr, PARTS_2: tl.constexpr,
):  # fmt: skip
    """One head's result for one query, joined from the parts whose keys the query sees."""
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0).to(tl.int64)
    part = tl.arange(0, PARTS_2)
    dims = tl.arange(0, WIDTH)
    position = tl.load(positions + row // heads % queries)
    valid = part <= tl.maximum(position, 0) // part_keys
    source = part * rows + row
    peak = tl.load(peaks + source, valid, float("-inf"))
    share = tl.exp2(peak - tl.max(peak))
    valid_result = valid[:, None] & (dims < HEAD_DIM)[None, :]
    result = tl.load(results + (source * HEAD_DIM)[:, None] + dims[None, :], valid_result, 0.0)
    total = tl.sum(share * tl.load(totals + source, valid, 0.0))
    result = tl.sum(share[:, None] * result, 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + row * HEAD_DIM + dims, result.to(out.dtype.element_ty), dims < HEAD_DIM)
