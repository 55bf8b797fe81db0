"""Readers: they read the layers of several segments group by group, ahead of the group that is needed next.

A *layer group* is a range of consecutive layers. A reader reads a group's layers of all segments into a *staging
buffer* in (pinned) host memory and copies that to where it is needed, usually a GPU.
"""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate

import torch
from torch import Tensor

from ragkv.loading.segments import LayerSource
from ragkv.loading.workers import ReadWorkers
from ragkv.store.segment_file import ByteRange

THREADS = min(12, os.cpu_count() or 1)
GROUPS_READING = 3  # that are read at the same time
BUFFER_LIMIT = 1 << 32  # bytes for all staging buffers of a WorkerReader, which always has two at least


class LayerReader(ABC):
    """Reads layer groups in order.

    Parameters
    ----------
    segments
        Whose layers are read.
    groups
        The layer groups, in order.

    Attributes
    ----------
    size
        The size of a staging buffer in bytes: segment after segment, each with space for the longest group's layers.
    """

    def __init__(self, segments: Sequence[LayerSource], groups: Sequence[range]):
        self._segments = segments
        self._pending = deque(groups)
        self._layer_sizes = [segment.layer_bytes for segment in segments]
        longest = max(map(len, groups), default=0)
        *self._offsets, self.size = accumulate((longest * size for size in self._layer_sizes), initial=0)

    @abstractmethod
    def ready(self) -> bool:
        """Whether the next group has been read, so that `copy_next` will not wait for it."""

    @abstractmethod
    def copy_next(self, target: Tensor) -> None:
        """Copy the next group to `target`, ``(size,)``; a copy to a GPU runs on the current stream.

        Raises
        ------
        StoreError
            A file is damaged or cannot be read.
        """

    def _buffers(self, staging: Tensor, group: range) -> Iterator[tuple[LayerSource, list[memoryview]]]:
        """Each segment, with the part of the staging buffer for each of its layers in the group."""
        memory = memoryview(staging.numpy())
        for segment, offset, size in zip(self._segments, self._offsets, self._layer_sizes, strict=True):
            starts = [offset + i * size for i in range(len(group))]
            yield segment, [memory[start : start + size] for start in starts]


class ThreadReader(LayerReader):
    """Reads with threads; each reads one segment's layers of a group, from a local or remote store or from memory."""

    def __init__(self, segments: Sequence[LayerSource], groups: Sequence[range]):
        super().__init__(segments, groups)
        self._threads = ThreadPoolExecutor(THREADS, "reader")
        self._reading: deque[tuple[Tensor, list[Future[None]]]] = deque()
        self._start()

    def ready(self) -> bool:
        _, reads = self._reading[0]
        return all(read.done() for read in reads)

    def copy_next(self, target: Tensor) -> None:
        staging, reads = self._reading.popleft()
        self._start()
        for read in reads:
            read.result()
        target.copy_(staging, non_blocking=True)

    def _start(self) -> None:
        """Begin to read further groups."""
        while self._pending and len(self._reading) < GROUPS_READING:
            group = self._pending.popleft()
            staging = torch.empty(self.size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            reads = [
                self._threads.submit(segment.read_layers, group.start, buffers)
                for segment, buffers in self._buffers(staging, group)
            ]
            self._reading.append((staging, reads))


class WorkerReader(LayerReader):
    """Reads local files with worker processes; everything else is read in this process."""

    def __init__(self, segments: Sequence[LayerSource], groups: Sequence[range], workers: ReadWorkers):
        super().__init__(segments, groups)
        count = max(2, min(GROUPS_READING + 2, BUFFER_LIMIT // self.size))
        buffers = workers.buffer(count * self.size)[: count * self.size].split(self.size)
        self._workers = workers
        # Free staging buffers, the one unused for longest first; each with the copy out of it that may still run.
        self._free = deque[tuple[Tensor, torch.cuda.Event | None]]((buffer, None) for buffer in buffers)
        self._reading: deque[tuple[Tensor, range, int]] = deque()  # staging buffer, group, batch
        self._start()

    def ready(self) -> bool:
        _, _, batch = self._reading[0]
        return self._workers.done(batch)

    def copy_next(self, target: Tensor) -> None:
        staging, group, batch = self._reading.popleft()
        if not self._workers.wait(batch):  # read it here: either this succeeds, or it says what is wrong
            for segment, buffers in self._buffers(staging, group):
                segment.read_layers(group.start, buffers)
        target.copy_(staging, non_blocking=True)
        copied = torch.cuda.current_stream(target.device).record_event() if target.is_cuda else None
        self._free.append((staging, copied))
        self._start()

    def _start(self) -> None:
        """Begin to read further groups."""
        while self._pending and self._free and len(self._reading) < GROUPS_READING:
            group = self._pending.popleft()
            staging, copied = self._free.popleft()
            if copied is not None:
                copied.synchronize()
            batch = self._workers.submit(self._requests(staging, group))
            self._reading.append((staging, group, batch))

    def _requests(self, staging: Tensor, group: range) -> list[tuple[ByteRange, int]]:
        """What workers read for a group, with offsets in their memory; the rest is read here."""
        requests = []
        for (segment, buffers), offset in zip(self._buffers(staging, group), self._offsets, strict=True):
            for i, buffer in enumerate(buffers):
                if byte_range := segment.delegate(group.start + i, buffer):
                    requests.append((byte_range, staging.storage_offset() + offset + i * len(buffer)))
        return requests
