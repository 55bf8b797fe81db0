"""Layers of reused keys and values on their way to a GPU while it computes the layers before them."""

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, device

from ragkv.cache import KV
from ragkv.segments import SegmentInMemory, SegmentKV

READERS = 8  # threads
BLOCK, BLOCKS = 4, 3  # layers of a segment that are read at once, and blocks of layers that are read at a time


class LayersAhead:
    """Layers copied on a stream of their own, some ahead of the one that is computed.

    Parameters
    ----------
    segments
        From pinned memory, and from other GPUs, their copies run while the GPU computes; others are brought into
        pinned memory by threads first.
    devices
        Where each layer goes, in order.
    depth
        How many layers are on their way at a time.
    """

    def __init__(self, segments: Sequence[SegmentKV], devices: dict[int, device], depth: int = 2):
        self._segments, self._devices, self._depth = segments, devices, depth
        self._left = list(devices)
        self._streams = {to: torch.cuda.Stream(to) for to in set(devices.values())}
        self._coming: dict[int, tuple[KV | None, torch.cuda.Event]] = {}
        self._reader = None if all(map(_within_reach, segments)) else Reader(segments, self._left)
        self._fill()

    def __contains__(self, index: int) -> bool:
        return index in self._coming or index in self._left

    def layer(self, index: int) -> KV | None:
        """One layer, once; the current stream waits for it, the host only for what is still being read."""
        while index not in self._coming:
            self._issue()
        states, arrived = self._coming.pop(index)
        now = torch.cuda.current_stream(self._devices[index])
        now.wait_event(arrived)
        for part in states or ():
            part.record_stream(now)
        self._fill()
        return states

    def _fill(self) -> None:
        while self._left and len(self._coming) < self._depth:
            if self._reader and not self._reader.has(self._left[0]):
                break
            self._issue()

    def _issue(self) -> None:
        index = self._left.pop(0)
        to, arrived = self._devices[index], torch.cuda.Event()
        read = self._reader.layer(index) if self._reader else None
        with torch.cuda.stream(self._streams[to]):
            if read is None:
                parts = [segment.layer(index) for segment in self._segments]
            else:  # one copy for all segments
                sizes = [math.prod(segment.shape) for segment in self._segments]
                parts = read.to(to, non_blocking=True).split(sizes)
                parts = [part.view(s.shape) for part, s in zip(parts, self._segments, strict=True)]
            states = side_by_side(parts, to)
            arrived.record(self._streams[to])
        self._coming[index] = states, arrived


class Reader:
    """Layers brought into pinned memory by several threads, each some layers of a segment at once.

    Parameters
    ----------
    layers
        In order, without gaps.
    """

    def __init__(self, segments: Sequence[SegmentKV], layers: Sequence[int]):
        self._segments, self._threads = segments, ThreadPoolExecutor(READERS, "reader")
        self._left = [layers[i : i + BLOCK] for i in range(0, len(layers), BLOCK)]
        self._rooms: dict[int, Tensor] = {}  # by layer, all segments, one after the other
        self._reading: dict[int, list[Future[None]]] = {}
        self._start()

    def has(self, index: int) -> bool:
        """Whether nothing of a layer has to be waited for."""
        return all(part.done() for part in self._reading[index])

    def layer(self, index: int) -> Tensor:
        """One layer of all segments, one after the other, as it was read, ``(numbers,)``; once.

        Raises
        ------
        StoreError
            A file is damaged, or cannot be read.
        """
        for part in self._reading.pop(index):
            part.result()
        self._start()
        return self._rooms.pop(index)

    def _start(self) -> None:
        while self._left and len(self._reading) <= (BLOCKS - 1) * BLOCK:
            layers = self._left.pop(0)
            sizes = [math.prod(segment.shape) for segment in self._segments]
            rooms = [torch.empty(sum(sizes), dtype=self._segments[0].dtype, pin_memory=True) for _ in layers]
            by_segment = zip(self._segments, zip(*(room.split(sizes) for room in rooms), strict=True), strict=True)
            reading = [self._threads.submit(_fill, segment, layers[0], parts) for segment, parts in by_segment]
            self._rooms |= dict(zip(layers, rooms, strict=True))
            self._reading |= dict.fromkeys(layers, reading)


@torch.inference_mode()  # which is a thread's own, and that of the rooms
def _fill(segment: SegmentKV, first: int, rooms: Sequence[Tensor]) -> None:
    segment.fill(first, rooms)


def _within_reach(segment: SegmentKV) -> bool:
    """Whether a copy to a GPU needs no more of the host."""
    return isinstance(segment, SegmentInMemory) and (segment.layers.is_cuda or segment.layers.is_pinned())


def side_by_side(parts: Sequence[Tensor], to: device) -> KV | None:
    """One layer of several segments: keys before rotation and values, ``(1, kv_heads, tokens, head_dim)`` each."""
    if not parts:
        return None
    if to.type == "cuda":  # each on its own: from pinned memory the host does not wait
        parts = [part.to(to, non_blocking=True) for part in parts]
    keys, values = torch.cat(list(parts), dim=2).to(to)
    return keys[None], values[None]
