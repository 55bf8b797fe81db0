"""Where reused keys and values come from: the GPU, pinned host memory, a store's files in the page cache or on disk."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedModel

from ragkv.precompute import compute_segment
from ragkv.prompt import Prompt, Segment
from ragkv.segments import SegmentInMemory, SegmentKV, Segments
from ragkv.store import KVStore, Layout
from ragkv.timing import nothing

TIERS = ("cuda", "pinned", "page cache", "disk")


@dataclass
class InMemory:
    """Segments that lie in one place: on the GPU, in pinned host memory, or in ordinary memory."""

    segments: dict[Segment, SegmentInMemory]
    url: str = "memory"
    format: str = "model"

    @classmethod
    def computed(cls, model: PreTrainedModel, prompt: Prompt) -> "InMemory":
        """A prompt's segments, computed now."""
        segments = prompt.segments(model.config.bos_token_id)
        return cls({segment: SegmentInMemory(*compute_segment(model, segment)) for segment in segments})

    def open(self, layout: Layout, segment: Segment) -> SegmentKV:
        return self.segments[segment]

    def other_model(self, layout: Layout) -> str | None:
        return None

    def to(self, where: str) -> "InMemory":
        return InMemory({segment: states.to(where) for segment, states in self.segments.items()}, where)

    def into(self, store: KVStore, model: PreTrainedModel) -> None:
        """Write all of them to a store, as `ragkv.precompute` does."""
        layout = Layout.of(model, store.format)
        for segment, states in self.segments.items():
            store.write(layout, segment, states.layers, states.scores)


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
