"""Layers of stored segments brought into memory by several threads."""

import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ragkv.segments import Readable

READERS = 8  # threads
PARTS = 3  # that are read at a time


class Reader:
    """Parts of the layers, one after the other, each with some layers of all segments; a thread reads a segment's.

    Parameters
    ----------
    parts
        Layers, in order.
    """

    def __init__(self, segments: Sequence[Readable], parts: Sequence[range]):
        self._segments, self._left = segments, deque(parts)
        self._longest = max(map(len, parts), default=0)
        self._threads = ThreadPoolExecutor(READERS, "reader")
        self._reading: deque[tuple[Tensor, list[Future[None]]]] = deque()
        self._start()

    def has(self) -> bool:
        """Whether nothing of the next part has to be waited for."""
        return all(segment.done() for segment in self._reading[0][1])

    def part(self) -> Tensor:
        """The next part, ``(numbers,)``: segment by segment, with room for the longest part's layers of each.

        Raises
        ------
        StoreError
            A file is damaged, or cannot be read.
        """
        room, reading = self._reading.popleft()
        self._start()
        for segment in reading:
            segment.result()
        return room

    def _start(self) -> None:
        while self._left and len(self._reading) < PARTS:
            part, sizes = self._left.popleft(), [math.prod(segment.shape) for segment in self._segments]
            room = _room(self._longest * sum(sizes), self._segments[0].dtype)
            rooms = room.split([self._longest * size for size in sizes])
            places = [own.split(size)[: len(part)] for own, size in zip(rooms, sizes, strict=True)]
            reading = [
                self._threads.submit(_fill, segment, part.start, own)
                for segment, own in zip(self._segments, places, strict=True)
            ]
            self._reading.append((room, reading))


def _room(numbers: int, dtype: torch.dtype) -> Tensor:
    """On the host; pinned where there is a GPU, so that copies to it run while it computes."""
    return torch.empty(numbers, dtype=dtype, pin_memory=torch.cuda.is_available())


@torch.inference_mode()  # which is a thread's own, and that of the rooms
def _fill(segment: Readable, first: int, rooms: Sequence[Tensor]) -> None:
    segment.fill(first, rooms)
