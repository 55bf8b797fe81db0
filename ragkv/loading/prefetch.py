"""Prefetching: a background thread reads the segments of coming prompts into memory before they are needed."""

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from ragkv.loading.segments import SegmentInMemory, SegmentKV
from ragkv.prompt import Segment
from ragkv.store import KVStore, Layout


class PrefetchingStore:
    """A store whose segments can be prefetched into memory by a background thread.

    Segments that were not prefetched are read from the store when they are opened. The segments of the last two calls
    of `prefetch` stay in memory. A forked child starts anew, as it has none of its parent's threads.
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
        self._prefetched: list[dict[Segment, Future[SegmentInMemory]]] = [{}, {}]  # of the last two calls

    def _begin_in_child(self) -> None:
        if self._process != os.getpid():
            self._begin()

    def prefetch(self, segments: Iterable[Segment]) -> None:
        """Begin to read these segments and return at once."""
        self._begin_in_child()
        _, previous = self._prefetched
        current = {segment: previous.get(segment) or self._thread.submit(self._read, segment) for segment in segments}
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

    def _read(self, segment: Segment) -> SegmentInMemory:
        stored = self._store.open(self._layout, segment)
        layers = torch.stack([stored.layer(i) for i in range(self._layout.layers)])
        read = SegmentInMemory(layers, stored.surprisal())
        return read.to("pinned") if torch.cuda.is_available() else read
