"""Position-causal attention in Triton: a tile of queries reads no key beyond its highest position.

The heads that share a KV head are interleaved in a tile: row = query * group + head within the group. So a tile covers
few positions, which keeps its masked part small, and keys and values are read once for a whole group. Where there are
too few tiles to fill the GPU, the keys are split into parts, and a second kernel joins the parts' results.

The keys of several prompts may lie end to end. Then each query also has a first key, that of its own prompt, and a tile
with queries of two prompts reads the keys of both.
"""

from math import log

import torch
import triton
import triton.language as tl
from torch import Tensor

from ragkv.kernels import early_start, on_its_gpu
from ragkv.kernels.early import wait_for_previous
from ragkv.kernels.tiles import Config, split, tile, width

LN_2 = log(2)
LOWEST = tl.constexpr(-1e30)  # below any product but finite: a row that sees none of a part's keys gets no NaN


@on_its_gpu
def position_causal(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    scaling: float,
    *,
    firsts: Tensor | None = None,
    tuned: Config | None = None,
) -> Tensor:
    """Position-causal attention: see `ragkv.models.attention` for the arguments; `scaling` is positive.

    Queries at position -1, which come before all others, are padding: their output is finite but has no meaning.

    Parameters
    ----------
    firsts
        ``(queries,)``: the first key that each query attends to, not descending; `positions` are then the last ones,
        counted in the same way. 0 for padding. None is 0 for all.
    """
    chosen = tuned or tile(query, key)
    return _attention(query, key, value, positions, scaling, chosen, firsts)[0]


@on_its_gpu
def attention_sums(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    positions: Tensor,
    scaling: float,
    chosen: Config,
    firsts: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Attention, with the running sums and maxima of its softmax over each part of a tile's keys.

    Returns
    -------
    attended
        As `position_causal`; None without `value`.
    totals, peaks
        ``(parts, batch, queries, heads)``: the sum of ``2 ** (product - peak)``, with products in units of ln 2. The
        sum is 0 where a query sees no key of a part.
    """
    return _attention(query, key, value, positions, scaling, chosen, firsts, sums=True)


def _attention(query, key, value, positions, scaling, chosen: Config, firsts: Tensor | None, sums: bool = False):
    _, heads, queries, head_dim = query.shape
    batch, kv_heads, tokens, _ = key.shape
    group = heads // kv_heads
    device = key.device
    query = query.expand(batch, -1, -1, -1)
    parts = split(query, key, chosen)
    store_sums = sums or parts > 1
    totals, peaks = torch.empty((2, parts, batch, queries, heads) if store_sums else (2, 1), device=device)
    out = results = None
    if value is not None:
        out = torch.empty(batch, queries, heads, head_dim, dtype=query.dtype, device=device)
        results = torch.empty(parts, *out.shape, device=device) if parts > 1 else out
    values = value if value is not None else key
    _attend[(triton.cdiv(queries * group, chosen.rows) * parts * batch * kv_heads,)](
        query, key, values, positions, firsts if firsts is not None else positions,
        results if results is not None else totals, totals, peaks,
        query.stride()[:3], key.stride()[:3], values.stride()[:3],
        batch, heads, queries, tokens, scaling / LN_2,
        GROUP=group, HEAD_DIM=head_dim, WIDTH=width(head_dim), ROWS=chosen.rows, KEYS=chosen.keys, PARTS=parts,
        VALUES=out is not None, SUMS=store_sums, PACKED=firsts is not None,
        num_warps=chosen.warps, num_stages=chosen.stages, **early_start(key, queries),
    )  # fmt: skip
    if out is not None and parts > 1:
        _join[(batch * queries * heads,)](
            results, totals, peaks, out,
            HEAD_DIM=head_dim, WIDTH=width(head_dim), PARTS=parts, PARTS_2=triton.next_power_of_2(parts),
            **early_start(key, queries),
        )  # fmt: skip
    return out.transpose(1, 2) if out is not None else None, totals, peaks


@triton.jit
def _over_keys(
    total, peak, result, query, position, first_key, key, value, key_step, value_step, start, stop, tokens, factor,
    HEAD_DIM: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr, VALUES: tl.constexpr, PACKED: tl.constexpr,
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
            if PACKED:
                products = tl.where(first_key[:, None] <= (first + block)[None, :], products, float("-inf"))
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
    query, key, value, positions, firsts, out, totals, peaks, query_strides, key_strides, value_strides,
    batch, heads, queries, tokens, factor,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PARTS: tl.constexpr, VALUES: tl.constexpr, SUMS: tl.constexpr, PACKED: tl.constexpr, EARLY: tl.constexpr = False,
):  # fmt: skip
    """One tile of queries over one part of the keys. Tiles with high positions take longest, so they come first."""
    wait_for_previous(EARLY)
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
    source_row = tl.minimum(query_index, queries - 1)
    position = tl.load(positions + source_row).to(tl.int32)
    highest = tl.max(position)
    lowest = tl.min(tl.where(position >= 0, position, highest))  # padding may see whatever all others see
    first_key = tl.zeros([ROWS], tl.int32)
    begin = 0  # the first key that any of them sees
    if PACKED:
        first_key = tl.load(firsts + source_row).to(tl.int32)
        begin = tl.min(first_key)
    part_keys = tl.cdiv(tl.cdiv(highest + 1 - begin, PARTS), KEYS) * KEYS
    start = begin + part * part_keys
    stop = tl.minimum(start + part_keys, highest + 1)
    target = ((part * batch + item) * queries + query_index.to(tl.int64)) * heads + head
    if (start >= stop) & ((part > 0) | (highest >= 0)):  # a tile of padding alone is stored by its first part
        if SUMS:
            tl.store(totals + target, tl.zeros([ROWS], tl.float32), valid)
        return
    all_see = begin + (lowest + 1 - begin) // KEYS * KEYS  # keys before this need no mask
    if PACKED:
        all_see = tl.where(tl.max(first_key) == begin, all_see, begin)  # queries of two prompts share no keys
    all_see = tl.maximum(start, tl.minimum(stop, all_see))

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
        total, peak, result, tile_query, position, first_key, key, value, key_strides[2], value_strides[2],
        start, all_see, tokens, factor, HEAD_DIM, KEYS, False, VALUES, PACKED,
    )  # fmt: skip
    total, peak, result = _over_keys(
        total, peak, result, tile_query, position, first_key, key, value, key_strides[2], value_strides[2],
        all_see, stop, tokens, factor, HEAD_DIM, KEYS, True, VALUES, PACKED,
    )  # fmt: skip

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
    results, totals, peaks, out, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr,
    PARTS_2: tl.constexpr, EARLY: tl.constexpr = False,
):  # fmt: skip
    """One head's result for one query, joined from the parts whose keys the query sees: their totals are not 0."""
    wait_for_previous(EARLY)
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0).to(tl.int64)
    part = tl.arange(0, PARTS_2)
    dims = tl.arange(0, WIDTH)
    source = part * rows + row
    total = tl.load(totals + source, part < PARTS, 0.0)
    valid = total > 0
    peak = tl.load(peaks + source, valid, float("-inf"))
    share = tl.exp2(peak - tl.maximum(tl.max(peak), LOWEST))
    valid_result = valid[:, None] & (dims < HEAD_DIM)[None, :]
    result = tl.load(results + (source * HEAD_DIM)[:, None] + dims[None, :], valid_result, 0.0)
    total = tl.sum(share * total)
    result = tl.sum(share[:, None] * result, 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + row * HEAD_DIM + dims, result.to(out.dtype.element_ty), dims < HEAD_DIM)
