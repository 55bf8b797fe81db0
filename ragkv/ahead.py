"""Layers of reused keys and values on their way to a GPU while it computes the layers before them."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import device

from ragkv.kernels import kernels_run
from ragkv.quantize import CODECS
from ragkv.reader import Readable, Reader
from ragkv.segments import SegmentInMemory, SegmentKV
from ragkv.store.stored_segment import Packed, StoredSegment

PART = 4  # layers that arrive, and are told of, together: the GPU begins with some while the host does the next
PARTS = 2  # on their way at a time

Arrived = TypeVar("Arrived")


def parts_of(layers: range, devices: Sequence[device]) -> list[range]:
    """The layers in parts, each on one of the `devices`, which every layer of the model has."""
    return divided(layers, lambda i: devices[i] != devices[i - 1] or i % PART == 0)


def divided(layers: range, cut: Callable[[int], bool]) -> list[range]:
    """Parts of the layers, one beginning wherever `cut` says so; none of no layers."""
    cuts = [i for i in layers[1:] if cut(i)]
    return [range(a, b) for a, b in zip([layers.start, *cuts], [*cuts, layers.stop], strict=True)] if layers else []


class PartsAhead(Generic[Arrived]):
    """Parts of the layers, copied on a stream of their own, some ahead of the one that is computed.

    Parameters
    ----------
    segments
        From pinned memory, and from other GPUs, their copies run while the GPU computes; others are brought into
        pinned memory by threads first; those that are stored in eight or four bits become numbers again on the GPU.
    parts
        The layers, in order; those of a part arrive together.
    to
        The GPU.

    Attributes
    ----------
    staged
        Where parts arrive, by segment, ``(layers, 2, kv_heads, tokens, head_dim)``; a short one takes the first layers.
    """

    def __init__(self, segments: Sequence[SegmentKV], parts: Sequence[range], to: device):
        self._segments, self._parts, self._left, self._to = segments, parts, deque(parts), to
        self._coming: dict[int, tuple[Arrived, torch.cuda.Event]] = {}
        self._longest = max(map(len, parts))
        sizes = [self._longest * math.prod(segment.shape) for segment in segments]
        self._room = torch.empty(sum(sizes), dtype=segments[0].dtype, device=to)
        by_segment = zip(self._room.split(sizes), segments, strict=True)
        self.staged = [room.view(self._longest, *segment.shape) for room, segment in by_segment]
        self._stream = torch.cuda.Stream(to, priority=-1)
        self._room.record_stream(self._stream)
        self._codes = self._room  # where what is read arrives
        self._read: Sequence[Readable] = segments
        self._unpack: Callable[[int], None] | None = None
        if format := _packed_as(segments) if kernels_run(to) else None:
            self._to_unpack(format)

    def _to_unpack(self, format: str) -> None:
        """Bring codes and scales as they are stored, and unpack them on the GPU."""
        from ragkv.kernels.unpacking import unpacking

        self._read = [Packed(segment) for segment in self._segments if isinstance(segment, StoredSegment)]
        sizes = [self._longest * math.prod(segment.shape) for segment in self._read]
        self._codes = torch.empty(sum(sizes), dtype=torch.uint8, device=self._to)
        self._codes.record_stream(self._stream)
        self._unpack = unpacking(self._codes.split(sizes), self.staged, format)

    def start(self, arrived: Callable[[range], Sequence[Arrived]]) -> None:
        """Begin. `arrived` is called for each part once it is staged, on that stream; it gives what `layer` gives."""
        self._arrived = arrived
        self._reader = None if all(map(_within_reach, self._segments)) else Reader(self._read, self._parts)
        self._stream.wait_stream(torch.cuda.current_stream(self._to))  # where parts go may still be in use
        self._go_on()

    def layer(self, index: int) -> Arrived:
        """One layer, once; the current stream waits for it, the host only for what is still being read."""
        while index not in self._coming:
            self._issue()
        result, event = self._coming.pop(index)
        torch.cuda.current_stream(self._to).wait_event(event)
        self._go_on()
        return result

    def _go_on(self) -> None:
        while self._left and len(self._coming) <= (PARTS - 1) * self._longest:
            if self._reader and not self._reader.has():
                break
            self._issue()

    def _issue(self) -> None:
        part = self._left.popleft()
        read = self._reader.part() if self._reader else None
        with torch.cuda.stream(self._stream):
            if read is None:
                for room, segment in zip(self.staged, self._segments, strict=True):
                    assert isinstance(segment, SegmentInMemory)
                    room[: len(part)].copy_(segment.layers[part.start : part.stop], non_blocking=True)
            else:
                self._codes.copy_(read, non_blocking=True)
                if self._unpack:
                    self._unpack(len(part))
            results = self._arrived(part)
            event = self._stream.record_event()
        self._coming |= {index: (result, event) for index, result in zip(part, results, strict=True)}


def _within_reach(segment: SegmentKV) -> bool:
    """Whether a copy to a GPU needs no more of the host."""
    return isinstance(segment, SegmentInMemory) and (segment.layers.is_cuda or segment.layers.is_pinned())


def _packed_as(segments: Sequence[SegmentKV]) -> str | None:
    """The smaller format in which all segments are stored, if it is one and the same."""
    formats = {segment.format if isinstance(segment, StoredSegment) else "model" for segment in segments}
    return formats.pop() if len(formats) == 1 and formats <= CODECS.keys() else None
