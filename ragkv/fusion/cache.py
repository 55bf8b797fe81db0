"""Keys and values written into a layer's slots, and an ordinary transformers cache over them."""

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


def write(memory: KV, fresh: KV, rotary: Rotary, positions: Tensor, slots: Tensor) -> None:
    """Write keys, rotated to their positions, and values into a layer's slots, in place.

    Parameters
    ----------
    memory
        ``(1, kv_heads, slots, head_dim)`` each.
    fresh
        ``(1, kv_heads, fresh, head_dim)`` each, keys before rotation.
    positions, slots
        ``(fresh,)``: the positions that the keys are rotated to, and the slots that keys and values are written to.
    """
    if kernels_run(memory[0].device):
        from ragkv.kernels import placing

        placing.write(memory, fresh, *rotary.on(memory[0].device), positions, slots)
    else:
        memory[0].index_copy_(2, slots, rotary(fresh[0], positions))
        memory[1].index_copy_(2, slots, fresh[1])


def write_first(memory: KV, stored: KV, rotary: Rotary) -> None:
    """Write stored keys, before rotation, and values into a layer's first slots, which are their positions."""
    positions = torch.arange(stored[0].shape[2], device=stored[0].device)
    write(memory, stored, rotary, positions, positions)


def build_cache(layers: list[KV]) -> DynamicCache:
    """An ordinary transformers cache over keys (rotated) and values, one pair per layer, without copying them."""
    cache = DynamicCache()  # full layers, also for a model with a sliding window: its masks do the rest
    for keys, values in layers:
        layer = DynamicLayer()
        layer.keys = keys
        layer.values = values
        layer.dtype = keys.dtype
        layer.device = keys.device
        layer.is_initialized = True
        cache.layers.append(layer)
    return cache


@lru_cache
def cache_argument() -> str:
    """The name of the cache argument of transformers' forward and `generate`: ``past_key_values`` before 5.24."""
    return "cache" if "cache" in signature(LlamaForCausalLM.forward).parameters else "past_key_values"


def fork(cache: DynamicCache) -> DynamicCache:
    """A second cache over the same keys and values. It grows on its own; the first one stays as it is."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch
