"""How much all queries together attend to each key, without storing the attention weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ragkv.kernels import on_its_gpu
from ragkv.kernels.attention import LN_2, attention_sums
from ragkv.kernels.tiles import Config, tile, width

LEVEL_ROWS = 128  # rows per program of `_levels`
SUM_ROWS = 64  # queries per tile of `_sum_over_queries`


@on_its_gpu
def attention_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    positions: Tensor,
    scaling: float,
    power: float = 1.0,
    *,
    firsts: Tensor | None = None,
    tuned: Config | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Attention, and its weights summed as by `ragkv.models.attention.attention_weights`.

    Queries at position -1 are padding: they add nothing to the weights. `firsts` are as in `position_causal`.

    Returns
    -------
    attended
        As `position_causal`; None without `value`.
    weights
        Raised to `power` and summed over the queries, ``(heads, tokens)`` in float32.
    """
    _, heads, queries, head_dim = query.shape
    _, kv_heads, tokens, _ = key.shape
    chosen = tuned or tile(query, key)
    attended, totals, peaks = attention_sums(query[:1], key[:1], value, positions, scaling, chosen, firsts)
    parts = len(totals)
    levels = torch.empty(queries, heads, device=key.device)
    _levels[(triton.cdiv(queries * heads, LEVEL_ROWS),)](
        totals, peaks, levels, queries * heads, parts, PARTS_2=triton.next_power_of_2(parts), ROWS=LEVEL_ROWS
    )
    # The fastest of those tried for heads of up to 128 in two bytes; the others fit into less shared memory.
    keys, warps, stages = (64, 4, 2) if key.element_size() == 2 and head_dim <= 128 else (32, 4, 2)
    weights = torch.empty(heads, tokens, device=key.device)
    _sum_over_queries[(triton.cdiv(tokens, keys) * kv_heads,)](
        query, key, positions, firsts if firsts is not None else positions, levels, weights,
        query.stride()[1:], key.stride()[1:], heads, queries, tokens, scaling / LN_2, power,
        GROUP=heads // kv_heads, HEAD_DIM=head_dim, WIDTH=width(head_dim), ROWS=SUM_ROWS, KEYS=keys,
        PACKED=firsts is not None, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return attended, weights


@triton.jit
def _levels(totals, peaks, levels, count, parts, PARTS_2: tl.constexpr, ROWS: tl.constexpr):
    """The base-2 logarithm of each row's softmax denominator, over all parts of the keys."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.arange(0, PARTS_2)
    valid = (part < parts)[:, None] & (row < count)[None, :]
    source = part[:, None] * count + row[None, :]
    total = tl.load(totals + source, valid, 0.0)
    peak = tl.where(total > 0, tl.load(peaks + source, valid, 0.0), float("-inf"))
    highest = tl.maximum(tl.max(peak, 0), -1e30)
    level = highest + tl.log2(tl.maximum(tl.sum(total * tl.exp2(peak - highest[None, :]), 0), 1e-37))
    tl.store(levels + row, level, row < count)


@triton.jit
def _sum_over_queries(
    query, key, positions, firsts, levels, out, query_strides, key_strides, heads, queries, tokens, factor, power,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    """The sums of weights for a block of keys and each head that shares them, over the queries that see any of them."""
    kv_heads = heads // GROUP
    kv_head = (tl.program_id(0) % kv_heads).to(tl.int64)
    block = tl.program_id(0) // kv_heads
    key_index = block * KEYS + tl.arange(0, KEYS)
    dims = tl.arange(0, WIDTH)

    before = 0  # queries before the block's first key
    behind = 0  # queries of later prompts
    for start in tl.range(0, queries, 256):
        query_index = start + tl.arange(0, 256)
        position = tl.load(positions + query_index, query_index < queries, tokens)
        before += tl.sum((position < block * KEYS).to(tl.int32))
        if PACKED:
            first_key = tl.load(firsts + query_index, query_index < queries, 0)
            behind += tl.sum((first_key >= (block + 1) * KEYS).to(tl.int32))

    if before + behind >= queries:  # as for all slots behind the prompt
        for index in tl.range(0, GROUP):
            head_out = out + (kv_head * GROUP + index) * tokens
            tl.store(head_out + key_index, tl.zeros([KEYS], tl.float32), key_index < tokens)
        return

    key_at = kv_head * key_strides[0] + key_index.to(tl.int64) * key_strides[1]
    keys = tl.load(key + key_at[:, None] + dims, (key_index < tokens)[:, None] & (dims < HEAD_DIM), 0.0)
    tiles = tl.cdiv(queries - before - behind, ROWS)
    total = tl.zeros([KEYS], tl.float32)
    for step in tl.range(0, GROUP * tiles):  # the tiles of the first head, then those of the next one, ...
        head = kv_head * GROUP + step // tiles
        tile = step % tiles
        query_index = before + tile * ROWS + tl.arange(0, ROWS)
        valid = query_index < queries
        query_at = head * query_strides[0] + query_index.to(tl.int64) * query_strides[1]
        tile_query = tl.load(query + query_at[:, None] + dims, valid[:, None] & (dims < HEAD_DIM), 0.0)
        level = tl.load(levels + query_index * heads + head, valid, float("inf"))
        position = tl.load(positions + query_index, valid, -1)
        products = tl.dot(tile_query, keys.T, input_precision="ieee") * factor - level[:, None]
        seen = position[:, None] >= key_index[None, :]
        if PACKED:
            first_key = tl.load(firsts + query_index, valid, 0)
            seen = seen & (first_key[:, None] <= key_index[None, :])
        total += tl.sum(tl.exp2(tl.where(seen, products * power, float("-inf"))), 0)
        last = tl.zeros([KEYS], tl.int32) + tile == tiles - 1
        tl.store(out + head * tokens + key_index, total, (key_index < tokens) & last)
        total = tl.where(last, 0.0, total)
