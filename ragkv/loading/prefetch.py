"""A store whose segments are read into memory by a thread, before they are needed."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from ragkv.loading.segments import SegmentInMemory, SegmentKV
from ragkv.prompt import Segment
from ragkv.store import KVStore, Layout


class ReadAhead:
    """A store whose segments are read into memory by a thread of their own, before they are needed.

    What is not read ahead comes from the store itself. Segments of the last two calls of `fetch` stay in memory.
    """

    def __init__(self, store: KVStore, layout: Layout):
        self.url, self.format, self._store, self._layout = store.url, store.format, store, layout
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._fetched: list[dict[Segment, Future[SegmentInMemory]]] = []

    def fetch(self, segments: Iterable[Segment]) -> None:
        """Begin to read these segments; returns at once."""
        before = self._fetched[-1] if self._fetched else {}
        now = {s: before.get(s) or self._thread.submit(self._read, s) for s in segments}
        self._fetched = [before, now]

    def wait(self) -> None:
        """Until everything asked for is read, so that reading disturbs no timing."""
        wait(self._fetched[-1].values() if self._fetched else [])

    def open(self, layout: Layout, segment: Segment) -> SegmentKV:
        """The segment from memory or from the store; what went wrong while reading it is raised here."""
        if layout == self._layout:
            for fetched in reversed(self._fetched):
                if segment in fetched:
                    return fetched[segment].result()
        return self._store.open(layout, segment)

    def other_model(self, layout: Layout) -> str | None:
        return self._store.other_model(layout)

    def _read(self, segment: Segment) -> SegmentInMemory:
        stored = self._store.open(self._layout, segment)
        layers = torch.stack([stored.layer(i) for i in range(self._layout.layers)])
        read = SegmentInMemory(layers, stored.surprisal())
        return read.to("pinned") if torch.cuda.is_available() else read
