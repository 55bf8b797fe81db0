"""The fused cache: reused keys and values, fresh ones scattered over them, and an ordinary cache at the end."""

import copy

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ragkv.decoder import Rotary
from ragkv.kernels import kernels_run

KV = tuple[Tensor, Tensor]


def place(stored: KV | None, fresh: KV, positions: Tensor, rotary: Rotary, tokens: int) -> KV:
    """Keys and values of all `tokens` positions: the stored ones rotated to theirs, the fresh ones written over them.

    Parameters
    ----------
    stored
        ``(1, kv_heads, stored, head_dim)`` each, keys before rotation, for positions ``0 .. stored - 1``; None for
        nothing.
    fresh
        ``(1, kv_heads, fresh, head_dim)`` each, keys rotated.
    positions
        ``(fresh,)``: where the fresh ones stand. Together with the stored ones they cover every position.
    """
    if stored is None:
        return fresh
    keys, values = _place(*stored, rotary, tokens)
    return keys.index_copy_(2, positions, fresh[0]), values.index_copy_(2, positions, fresh[1])


def _place(keys: Tensor, values: Tensor, rotary: Rotary, tokens: int) -> KV:
    if kernels_run(keys.device):
        from ragkv.kernels.placing import place

        return place(keys, values, *rotary.on(keys.device), tokens)
    stored, shape = keys.shape[2], (*keys.shape[:2], tokens, keys.shape[3])
    placed, beside = keys.new_empty(shape), values.new_empty(shape)
    placed[:, :, :stored], beside[:, :, :stored] = rotary(keys, slice(stored)), values
    return placed, beside


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
