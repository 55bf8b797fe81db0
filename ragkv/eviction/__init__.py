"""Which tokens' keys and values stay after the prefill: one small dataclass per method, and a registry by name."""

from ragkv.eviction.base import Eviction, evict
from ragkv.eviction.snapkv import SnapKV
from ragkv.eviction.streaming import StreamingLLM
from ragkv.options import Registry

__all__ = ["EVICTIONS", "Eviction", "SnapKV", "StreamingLLM", "evict", "get_eviction", "register"]

EVICTIONS: Registry[Eviction] = Registry("eviction", {"streaming": StreamingLLM, "snapkv": SnapKV})
register = EVICTIONS.register


def get_eviction(name: str, **options: object) -> Eviction:
    """An eviction by name, its fields given as `options`.

    Raises
    ------
    ValueError
        An unknown name or field (the message lists those that exist), or a value that is out of range.
    """
    return EVICTIONS.build(name, options)
