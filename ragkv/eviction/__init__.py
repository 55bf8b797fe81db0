"""Which tokens' keys and values stay after the prefill: one small dataclass per method, and a registry by name."""

from ragkv.eviction.base import Eviction, evict
from ragkv.eviction.snapkv import SnapKV
from ragkv.eviction.streaming import StreamingLLM
from ragkv.options import build

__all__ = ["EVICTIONS", "Eviction", "SnapKV", "StreamingLLM", "evict", "get_eviction"]

EVICTIONS: dict[str, type[Eviction]] = {"streaming": StreamingLLM, "snapkv": SnapKV}


def get_eviction(name: str, **options: object) -> Eviction:
    """An eviction by name, its fields given as `options`.

    Raises
    ------
    ValueError
        An unknown name or field (the message lists those that exist), or a value that is out of range.
    """
    if name not in EVICTIONS:
        raise ValueError(f"unknown eviction {name!r}: choose one of {', '.join(EVICTIONS)}")
    return build(EVICTIONS[name], f"eviction {name!r}", options)
