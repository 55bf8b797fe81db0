"""Where reused keys and values come from: the GPU, pinned host memory, a store's files in the page cache or on disk."""

import os
from collections.abc import Callable
from functools import partial

from transformers import PreTrainedModel

from ragkv.bench.timing import nothing
from ragkv.loading.memory import InMemory
from ragkv.loading.prefetch import PrefetchingStore
from ragkv.loading.segments import Segments
from ragkv.store import KVStore, Layout

FILES = ("page cache", "disk")  # tiers of files
TIERS = ("cuda", "pinned", *FILES)


def tier(name: str, memory: InMemory, store: KVStore, model: PreTrainedModel) -> tuple[Segments, Callable[[], object]]:
    """Segments in one of `TIERS`, and what to call before each use so that they lie there and nowhere closer.

    Parameters
    ----------
    memory
        The segments.
    store
        On a local disk; holds the same segments, for tiers of which `needs_files` is true.

    Raises
    ------
    ValueError
        There is no such tier.
    """
    if name not in TIERS:
        raise ValueError(f"unknown tier {name!r}: choose among {', '.join(TIERS)}")
    if not needs_files(name, store.format):
        return memory.to(name), nothing
    layout = Layout.of(model, store.format)
    if name == "pinned":
        ahead = PrefetchingStore(store, layout)  # as they are stored
        ahead.prefetch(memory.segments)
        ahead.wait()
        return ahead, nothing
    paths = [store.path(layout.key(segment)) for segment in memory.segments]
    if name == "disk":
        return store, partial(_drop_from_page_cache, paths)
    _read_into_page_cache(paths)
    return store, nothing


def needs_files(name: str, format: str) -> bool:
    """Whether a tier takes segments in this format from files; quantised ones are pinned as they are stored."""
    return name in FILES or (name == "pinned" and format != "model")


def _read_into_page_cache(paths: list[str]) -> None:
    """Read the files once; the page cache then holds as much of them as fits."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.read(2**24):
                pass


def _drop_from_page_cache(paths: list[str]) -> None:
    """Write the files to the disk, then let the page cache drop them."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
