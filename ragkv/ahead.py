"""Layers of reused keys and values on their way to a GPU while it computes the layers before them."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, device

from ragkv.cache import KV
from ragkv.segments import SegmentInMemory, SegmentKV

READERS, READ_AHEAD = 8, 4  # threads that read stored segments, and layers that they read at a time


class LayersAhead:
    """Layers on their way to the GPU, on a stream of their own, some layers ahead of the one that is computed.

    Parameters
    ----------
    segments
        From pinned memory their copies run while the GPU computes; stored ones are read by several threads, each some
        segments of a layer, into pinned memory. From elsewhere the host waits for each.
    devices
        Where each layer goes, the first one first.
    depth
        How many layers are copied ahead, and how many of the next ones are being read.
    """

    def __init__(self, segments: Sequence[SegmentKV], devices: dict[int, device], depth: int = 2):
        self._segments, self._devices, self._depth = segments, devices, depth
        self._unread, self._left = list(devices), list(devices)
        self._streams = {to: torch.cuda.Stream(to) for to in set(devices.values())}
        self._coming: dict[int, tuple[KV | None, torch.cuda.Event]] = {}
        in_memory = all(isinstance(segment, SegmentInMemory) for segment in segments)
        self._readers = None if in_memory else ThreadPoolExecutor(READERS, "layers-ahead")
        self._reading: dict[int, list[Future[list[Tensor]]]] = {}
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
        self._read()
        while self._left and len(self._coming) < self._depth and self._is_read(self._left[0]):
            self._issue()

    def _issue(self) -> None:
        index = self._left.pop(0)
        to, arrived = self._devices[index], torch.cuda.Event()
        parts = [part for group in self._reading.pop(index) for part in group.result()] if self._readers else None
        self._read()
        with torch.cuda.stream(self._streams[to]):
            states = side_by_side(parts or [segment.layer(index) for segment in self._segments], to)
            arrived.record(self._streams[to])
        self._coming[index] = states, arrived

    def _read(self) -> None:
        """Begin to read the next layers."""
        while self._readers and self._unread and len(self._reading) < READ_AHEAD:
            index, size = self._unread.pop(0), -(-len(self._segments) // READERS)
            groups = [self._segments[i : i + size] for i in range(0, len(self._segments), size)]
            self._reading[index] = [self._readers.submit(_layer_of, group, index) for group in groups]

    def _is_read(self, index: int) -> bool:
        return not self._readers or all(group.done() for group in self._reading.get(index, ()))


def _layer_of(segments: Sequence[SegmentKV], index: int) -> list[Tensor]:
    return [segment.layer(index, pinned=True) for segment in segments]


def side_by_side(parts: list[Tensor], to: device) -> KV | None:
    """One layer of several segments: keys before rotation and values, ``(1, kv_heads, tokens, head_dim)`` each."""
    if not parts:
        return None
    if to.type == "cuda":  # each on its own: from pinned memory the host does not wait
        parts = [part.to(to, non_blocking=True) for part in parts]
    keys, values = torch.cat(parts, dim=2).to(to)
    return keys[None], values[None]
