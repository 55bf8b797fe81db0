"""Where reused keys and values come from: the GPU, pinned host memory, a store's files in the page cache or on disk."""

import os
from collections.abc import Callable
from functools import partial

from transformers import PreTrainedModel

from ragkv.bench.timing import nothing
from ragkv.loading.memory import InMemory
from ragkv.loading.segments import Segments
from ragkv.store import KVStore, Layout

TIERS = ("cuda", "pinned", "page cache", "disk")


def tier(name: str, memory: InMemory, store: KVStore, model: PreTrainedModel) -> tuple[Segments, Callable[[], object]]:
    """Segments in one of `TIERS`, and what to do before each use so that they are there and nowhere nearer.

    Parameters
    ----------
    store
        On a local disk; it holds the segments for the two tiers of files.

    Raises
    ------
    ValueError
        No such tier.
    """
    if name not in TIERS:
        raise ValueError(f"unknown tier {name!r}: choose among {', '.join(TIERS)}")
    if name in ("cuda", "pinned"):
        return memory.to(name), nothing
    layout = Layout.of(model, store.format)
    files = [store.path(layout.key(segment)) for segment in memory.segments]
    if name == "disk":
        return store, partial(_forget, files)
    _read(files)
    return store, nothing


def _read(paths: list[str]) -> None:
    """Once through the files, after which the page cache holds them, as far as there is room."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.read(2**24):
                pass


def _forget(paths: list[str]) -> None:
    """Let the page cache drop the files."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
