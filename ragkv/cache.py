"""The fused cache: reused keys and values, fresh ones scattered over them, and an ordinary cache at the end."""

import copy

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

KV = tuple[Tensor, Tensor]


def scatter(reused: KV | None, fresh: KV, positions: Tensor, tokens: int) -> KV:
    """Keys and values of all `tokens` positions: the reused ones first, the fresh ones written over them.

    Parameters
    ----------
    reused
        ``(1, kv_heads, reused, head_dim)`` each, for positions ``0 .. reused - 1``; None for nothing.
    fresh
        ``(1, kv_heads, fresh, head_dim)`` each.
    positions
        ``(fresh,)``: where the fresh ones stand. Together with the reused ones they cover every position.
    """
    if reused is None:
        return fresh
    return tuple(_scatter(old, new, positions, tokens) for old, new in zip(reused, fresh, strict=True))


def _scatter(old: Tensor, new: Tensor, positions: Tensor, tokens: int) -> Tensor:
    states = new.new_empty(*new.shape[:2], tokens, new.shape[3])
    states[:, :, : old.shape[2]] = old
    return states.index_copy_(2, positions, new)


def build_cache(layers: list[KV]) -> DynamicCache:
    """An ordinary transformers cache over these keys (rotated) and values, one pair a layer, without copying them."""
    cache = DynamicCache()  # full layers, also for a model with a sliding window: its masks do the rest
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def fork(cache: DynamicCache) -> DynamicCache:
    """A cache that grows on its own from the same keys and values; the original stays as it is."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch
