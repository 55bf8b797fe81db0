"""How much all queries together attend to each key, without holding the weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ragkv.kernels import on_its_gpu
from ragkv.kernels.attention import LN_2, Config, attention_sums, tile, width

SUMS = (64, 4, 2)  # keys of a block, warps and stages: the fastest of those tried, for heads of up to 128


@on_its_gpu
def attention_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    positions: Tensor,
    scaling: float,
    power: float = 1.0,
    *,
    tuned: Config | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Attention, and its weights as `ragkv.models.attention.attention_weights` gives them; queries at -1 do not count.

    Returns
    -------
    attended
        As `position_causal` gives it; None without `value`.
    weights
        Raised to `power` and summed over the queries, ``(heads, tokens)`` in float32.
    """
    (_, heads, queries, head_dim), (_, kv_heads, tokens, _) = query.shape, key.shape
    chosen = tuned or tile(query, key)
    attended, totals, peaks = attention_sums(query[:1], key[:1], value, positions, scaling, chosen)
    levels, out = torch.empty(queries, heads, device=key.device), torch.empty(heads, tokens, device=key.device)
    parts, rows = len(totals), 128
    _levels[(triton.cdiv(queries * heads, rows),)](
        totals, peaks, levels, queries * heads, parts, PARTS_2=triton.next_power_of_2(parts), ROWS=rows
    )
    keys, warps, stages = SUMS if key.element_size() == 2 and head_dim <= 128 else (32, 4, 2)
    _sum_over_queries[(triton.cdiv(tokens, keys) * kv_heads,)](
        query, key, positions, levels, out, query.stride()[1:], key.stride()[1:], heads, queries, tokens,
        scaling / LN_2, power, GROUP=heads // kv_heads, HEAD_DIM=head_dim, WIDTH=width(head_dim),
        ROWS=64, KEYS=keys, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return attended, out


@triton.jit
def _levels(totals, peaks, levels, count, parts, PARTS_2: tl.constexpr, ROWS: tl.constexpr):
    """The logarithm (to base 2) of what a row's weights are divided by, over all parts of the keys."""
    row, part = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, PARTS_2)
    there = (part < parts)[:, None] & (row < count)[None, :]
    at = part[:, None] * count + row[None, :]
    total = tl.load(totals + at, there, 0.0)
    peak = tl.where(total > 0, tl.load(peaks + at, there, 0.0), float("-inf"))
    highest = tl.maximum(tl.max(peak, 0), -1e30)
    level = highest + tl.log2(tl.maximum(tl.sum(total * tl.exp2(peak - highest[None, :]), 0), 1e-37))
    tl.store(levels + row, level, row < count)


@triton.jit
def _sum_over_queries(
    query, key, positions, levels, out, query_strides, key_strides, heads, queries, tokens, factor, power,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Each head's sum of weights for a block of keys, over the queries at or behind the first of them."""
    kv_heads = heads // GROUP
    kv_head, block = (tl.program_id(0) % kv_heads).to(tl.int64), tl.program_id(0) // kv_heads
    here, dims = block * KEYS + tl.arange(0, KEYS), tl.arange(0, WIDTH)
    key_at = kv_head * key_strides[0] + here.to(tl.int64) * key_strides[1]
    keys = tl.load(key + key_at[:, None] + dims, (here < tokens)[:, None] & (dims < HEAD_DIM), 0.0)  # of a whole group
    before = 0
    for start in tl.range(0, queries, 256):
        asked = start + tl.arange(0, 256)
        before += tl.sum((tl.load(positions + asked, asked < queries, tokens) < block * KEYS).to(tl.int32))
    tiles, total = tl.maximum(tl.cdiv(queries - before, ROWS), 1), tl.zeros([KEYS], tl.float32)
    for step in tl.range(0, GROUP * tiles):  # a head's tiles, and then the next one's
        head, tile = kv_head * GROUP + step // tiles, step % tiles
        asked = before + tile * ROWS + tl.arange(0, ROWS)
        there = asked < queries
        query_at = head * query_strides[0] + asked.to(tl.int64) * query_strides[1]
        part = tl.load(query + query_at[:, None] + dims, there[:, None] & (dims < HEAD_DIM), 0.0)
        level = tl.load(levels + asked * heads + head, there, float("inf"))
        where = tl.load(positions + asked, there, -1)
        products = tl.dot(part, keys.T, input_precision="ieee") * factor - level[:, None]
        total += tl.sum(tl.exp2(tl.where(where[:, None] >= here[None, :], products * power, float("-inf"))), 0)
        last = tl.zeros([KEYS], tl.int32) + tile == tiles - 1
        tl.store(out + head * tokens + here, total, (here < tokens) & last)
        total = tl.where(last, 0.0, total)
