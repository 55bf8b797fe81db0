"""The fused cache: reused keys and values, fresh ones scattered over them, and an ordinary cache at the end."""

import copy
from functools import lru_cache
from inspect import signature

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

from ragkv.kernels import kernels_run
from ragkv.models.decoder import KV
from ragkv.models.rotary import Rotary


def write(room: KV, fresh: KV, rotary: Rotary, positions: Tensor, slots: Tensor) -> None:
    """Keys, rotated to their positions, and values into a layer's slots, in place.

    Parameters
    ----------
    room
        ``(1, kv_heads, slots, head_dim)`` each.
    fresh
        ``(1, kv_heads, fresh, head_dim)`` each, keys before rotation.
    positions, slots
        ``(fresh,)``: to where the keys are rotated, and where they are kept.
    """
    if kernels_run(room[0].device):
        from ragkv.kernels import placing

        placing.write(room, fresh, *rotary.on(room[0].device), positions, slots)
    else:
        room[0].index_copy_(2, slots, rotary(fresh[0], positions))
        room[1].index_copy_(2, slots, fresh[1])


def write_first(room: KV, stored: KV, rotary: Rotary) -> None:
    """Stored keys, before rotation, and values into a layer's first slots, which are their positions."""
    order = torch.arange(stored[0].shape[2], device=stored[0].device)
    write(room, stored, rotary, order, order)


def place(stored: KV | None, fresh: KV, positions: Tensor, rotary: Rotary, tokens: int) -> KV:
    """Keys and values of all `tokens` positions: the stored ones from position 0 on, the fresh ones over them.

    Parameters
    ----------
    stored, fresh
        ``(1, kv_heads, stored, head_dim)`` and ``(1, kv_heads, fresh, head_dim)`` each, keys before rotation; None
        where nothing is stored.
    positions
        ``(fresh,)``: where the fresh ones stand. Together with the stored ones they cover every position.
    """
    keys, values = fresh
    if stored is None:
        return rotary(keys, positions), values
    shape = (*keys.shape[:2], tokens, keys.shape[3])
    room = keys.new_empty(shape), values.new_empty(shape)
    write_first(room, stored, rotary)
    write(room, fresh, rotary, positions, positions)
    return room


def build_cache(layers: list[KV]) -> DynamicCache:
    """An ordinary transformers cache over these keys (rotated) and values, one pair a layer, without copying them."""
    cache = DynamicCache()  # full layers, also for a model with a sliding window: its masks do the rest
    for keys, values in layers:
        layer = DynamicLayer()
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        layer.dtype, layer.device = keys.dtype, keys.device
        cache.layers.append(layer)
    return cache


@lru_cache
def cache_argument() -> str:
    """What transformers calls the cache of a forward and of `generate`; ``past_key_values`` before 5.24."""
    return "cache" if "cache" in signature(LlamaForCausalLM.forward).parameters else "past_key_values"


def fork(cache: DynamicCache) -> DynamicCache:
    """A cache that grows on its own from the same keys and values; the original stays as it is."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch
