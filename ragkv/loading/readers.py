"""Layers of stored segments brought to a GPU, or to other memory, part by part, some ahead of those asked for."""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate

import torch
from torch import Tensor

from ragkv.loading.processes import ReadProcesses
from ragkv.loading.segments import Readable
from ragkv.store.segment_file import Piece

THREADS = min(12, os.cpu_count() or 1)
PARTS = 3  # that are read at a time
ROOM = 1 << 32  # bytes that processes read into: fewer parts at a time are in it where they are large


class Reader(ABC):
    """Parts of the layers, one after the other, each with some layers of all segments.

    Parameters
    ----------
    parts
        Layers, in order.

    Attributes
    ----------
    size
        Bytes of a part: segment by segment, with room for the longest part's layers of each.
    """

    def __init__(self, segments: Sequence[Readable], parts: Sequence[range]):
        self._segments, self._left = segments, deque(parts)
        self._sizes, self._longest = [segment.layer_bytes for segment in segments], max(map(len, parts), default=0)
        *self._starts, self.size = accumulate((self._longest * size for size in self._sizes), initial=0)

    @abstractmethod
    def has(self) -> bool:
        """Whether nothing of the next part has to be waited for."""

    @abstractmethod
    def part(self, into: Tensor) -> None:
        """Copy the next part, ``(size,)``; to a GPU once its stream comes to it.

        Raises
        ------
        StoreError
            A file is damaged, or cannot be read.
        """

    def _rooms(self, room: Tensor, part: range) -> Iterator[tuple[Readable, list[memoryview]]]:
        """Each segment, and where its layers of a part go."""
        memory = memoryview(room.numpy())
        for segment, start, size in zip(self._segments, self._starts, self._sizes, strict=True):
            yield segment, [memory[start + i * size : start + (i + 1) * size] for i in range(len(part))]


class ThreadReader(Reader):
    """By threads, each of which reads a segment's layers of a part, wherever they lie."""

    def __init__(self, segments: Sequence[Readable], parts: Sequence[range]):
        super().__init__(segments, parts)
        self._threads = ThreadPoolExecutor(THREADS, "reader")
        self._reading: deque[tuple[Tensor, list[Future[None]]]] = deque()
        self._start()

    def has(self) -> bool:
        return all(segment.done() for segment in self._reading[0][1])

    def part(self, into: Tensor) -> None:
        room, reading = self._reading.popleft()
        self._start()
        for segment in reading:
            segment.result()
        into.copy_(room, non_blocking=True)

    def _start(self) -> None:
        while self._left and len(self._reading) < PARTS:
            part = self._left.popleft()
            room = torch.empty(self.size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            reading = [self._threads.submit(each.fill, part.start, rooms) for each, rooms in self._rooms(room, part)]
            self._reading.append((room, reading))


class ProcessReader(Reader):
    """By processes, which read what lies in local files; the rest is filled in here."""

    def __init__(self, segments: Sequence[Readable], parts: Sequence[range], processes: ReadProcesses):
        super().__init__(segments, parts)
        count = max(2, min(PARTS + 2, ROOM // self.size))
        rooms = processes.room(count * self.size)[: count * self.size].split(self.size)
        self._processes = processes
        # the one not used for longest first; what has to be over before it is read into
        self._rooms_left = deque[tuple[Tensor, torch.cuda.Event | None]]((room, None) for room in rooms)
        self._reading: deque[tuple[Tensor, range, int]] = deque()
        self._start()

    def has(self) -> bool:
        return self._processes.has(self._reading[0][2])

    def part(self, into: Tensor) -> None:
        room, part, batch = self._reading.popleft()
        if not self._processes.whole(batch):
            for segment, rooms in self._rooms(room, part):
                segment.fill(part.start, rooms)
        into.copy_(room, non_blocking=True)
        copied = torch.cuda.current_stream(into.device).record_event() if into.is_cuda else None
        self._rooms_left.append((room, copied))
        self._start()

    def _start(self) -> None:
        while self._left and self._rooms_left and len(self._reading) < PARTS:
            part, (room, copied) = self._left.popleft(), self._rooms_left.popleft()
            if copied is not None:
                copied.synchronize()
            self._reading.append((room, part, self._processes.ask(self._pieces(room, part))))

    def _pieces(self, room: Tensor, part: range) -> list[tuple[Piece, int]]:
        """What is left to others of a part, and where in their memory it goes."""
        pieces = []
        for (segment, rooms), start in zip(self._rooms(room, part), self._starts, strict=True):
            for i, own in enumerate(rooms):
                if piece := segment.share(part.start + i, own):
                    pieces.append((piece, room.storage_offset() + start + i * len(own)))
        return pieces
