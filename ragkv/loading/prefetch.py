"""Prefetching: a background thread reads the segments of coming prompts into memory before they are needed."""

import math
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import accumulate

import torch
from torch import Tensor

from ragkv.loading.segments import PackedInMemory, SegmentInMemory, SegmentKV
from ragkv.prompt import Segment
from ragkv.store import KVStore, Layout
from ragkv.store.quantize import CODECS, packed_sizes
from ragkv.store.segment_file import as_bytes
from ragkv.store.stored_segment import PackedSegment

Held = SegmentInMemory | PackedInMemory
Reads = dict[Segment, Future[Held]]


class PrefetchingStore:
    """A store whose segments can be prefetched into memory by a background thread.

    The segments of one call of `prefetch` lie side by side in one buffer, so that a prefill can copy them to a GPU
    together. Those of the last two calls stay in memory, in the format in which they are stored. Segments that were not
    prefetched are read from the store when they are opened. A forked child starts anew, as it has none of its parent's
    threads.
    """

    def __init__(self, store: KVStore, layout: Layout):
        self.url = store.url
        self.format = store.format
        self._store = store
        self._layout = layout
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._prefetched: list[Reads] = [{}, {}]  # of the last two calls

    def _begin_in_child(self) -> None:
        if self._process != os.getpid():
            self._begin()

    def prefetch(self, segments: Iterable[Segment]) -> None:
        """Begin to read these segments, once each, and return at once; what the last call had is not read again."""
        self._begin_in_child()
        wanted = list(dict.fromkeys(segments))
        _, previous = self._prefetched
        if wanted == list(previous):
            return
        sizes = [self._layer_bytes(segment) for segment in wanted]
        *starts, width = accumulate(sizes, initial=0)
        buffer = self._thread.submit(self._allocate, width)
        current: Reads = {}
        for segment, start in zip(wanted, starts, strict=True):
            current[segment] = self._thread.submit(self._read, segment, buffer, start, previous.get(segment))
        self._prefetched = [previous, current]

    def wait(self) -> None:
        """Wait until everything has been prefetched, so that reading does not disturb what is timed next."""
        self._begin_in_child()
        wait(self._prefetched[-1].values())

    def open(self, layout: Layout, segment: Segment) -> SegmentKV:
        """The segment, from memory or else from the store; an error while it was prefetched is raised here."""
        self._begin_in_child()
        if layout == self._layout:
            for prefetched in reversed(self._prefetched):
                if segment in prefetched:
                    return prefetched[segment].result()
        return self._store.open(layout, segment)

    def other_model(self, layout: Layout) -> str | None:
        return self._store.other_model(layout)

    def size(self, segment: Segment) -> int:
        """The size of the segment's file in bytes; errors as in `KVStore.size`."""
        return self._store.size(self._layout, segment)

    def _layer_shape(self, segment: Segment) -> tuple[int, ...]:
        return 2, self._layout.kv_heads, len(segment.ids), self._layout.head_dim

    def _layer_bytes(self, segment: Segment) -> int:
        """Bytes of a stored layer."""
        shape = self._layer_shape(segment)
        if self._layout.format in CODECS:
            return sum(packed_sizes(shape, self._layout.format))
        return math.prod(shape) * self._layout.dtype.itemsize

    def _allocate(self, width: int) -> Tensor:
        """A buffer for all layers side by side, ``(layers, bytes)``; pinned where there is a GPU."""
        return torch.empty(self._layout.layers, width, dtype=torch.uint8, pin_memory=torch.cuda.is_available())

    def _read(self, segment: Segment, buffer: Future[Tensor], start: int, earlier: Future[Held] | None) -> Held:
        """Read a segment into its part of the buffer, from byte `start` of each layer on, or copy an earlier read.

        Both have been done by this thread before.
        """
        whole = buffer.result()
        rows = whole[:, start : start + self._layer_bytes(segment)]
        if earlier is not None and earlier.exception() is None:
            known = earlier.result()
            rows.copy_(_rows(known))
            return self._held(rows, segment, known.surprisal())
        stored = self._store.open(self._layout, segment)
        source = PackedSegment(stored) if self._layout.format in CODECS else stored
        memory, width = as_bytes(whole), whole.shape[1]
        first_bytes = [row * width + start for row in range(len(whole))]
        source.read_layers(0, [memory[first : first + source.layer_bytes] for first in first_bytes])
        return self._held(rows, segment, stored.surprisal())

    def _held(self, rows: Tensor, segment: Segment, scores: Tensor) -> Held:
        """A segment whose layers are these bytes, ``(layers, bytes)``."""
        shape, dtype, format = self._layer_shape(segment), self._layout.dtype, self._layout.format
        if format in CODECS:
            return PackedInMemory(SegmentInMemory(rows, scores), shape, dtype, format)
        return SegmentInMemory(rows.view(dtype).unflatten(1, shape), scores)


def _rows(segment: Held) -> Tensor:
    """A segment's bytes in the buffer that it was read into, ``(layers, bytes)``."""
    if isinstance(segment, PackedInMemory):
        return segment.packed.layers
    return segment.layers.flatten(1).view(torch.uint8)
