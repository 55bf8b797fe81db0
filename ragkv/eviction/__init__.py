"""Evictions choose the tokens whose keys and values stay after the prefill: a dataclass per method, and a registry."""

from ragkv.eviction.base import Eviction, evict
from ragkv.eviction.snapkv import SnapKV
from ragkv.eviction.streaming import StreamingLLM
from ragkv.options import Registry

__all__ = ["EVICTIONS", "Eviction", "SnapKV", "StreamingLLM", "evict", "get_eviction", "register"]

EVICTIONS: Registry[Eviction] = Registry("eviction", {"streaming": StreamingLLM, "snapkv": SnapKV})
register = EVICTIONS.register


def get_eviction(name: str, **options: object) -> Eviction:
    """Make an eviction by name; the options are its fields.

    Raises
    ------
    ValueError
        The name or an option does not exist (the message lists those that do), or a value is out of range.
    """
    return EVICTIONS.build(name, options)
