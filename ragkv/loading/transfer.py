"""Layers of reused keys and values on their way to a GPU while it computes the layers before them."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, device

from ragkv.kernels import kernels_run
from ragkv.loading.processes import ReadProcesses
from ragkv.loading.readers import ProcessReader, Reader, ThreadReader
from ragkv.loading.segments import Readable, SegmentInMemory, SegmentKV
from ragkv.store.quantize import CODECS
from ragkv.store.stored_segment import Packed, StoredSegment

PART = 4  # layers that arrive, and are told of, together: the GPU begins with some while the host does the next
PARTS = 2  # on their way at a time

Arrived = TypeVar("Arrived")


def parts_of(layers: range, devices: Sequence[device]) -> list[range]:
    """The layers in parts, each on one of the `devices`, which every layer of the model has.

    The first and the last ones are small: the sooner there is one, the sooner the GPU begins, and ends.
    """

    def cut(index: int) -> bool:
        so_far, left = index - layers.start + 1, layers.stop - index
        return devices[index] != devices[index - 1] or so_far % PART == 0 or PART % so_far == 0 or PART % left == 0

    return divided(layers, cut)


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
        pinned memory by threads or processes first; what is stored in eight or four bits is unpacked on the GPU.
    parts
        The layers, in order; those of a part arrive together.
    to
        The GPU.
    processes
        Read what lies in local files and needs no unpacking on the host.

    Attributes
    ----------
    staged
        Where parts arrive, by segment, ``(layers, 2, kv_heads, tokens, head_dim)``; a short one takes the first layers.
    """

    def __init__(
        self,
        segments: Sequence[SegmentKV],
        parts: Sequence[range],
        to: device,
        processes: ReadProcesses | None = None,
    ):
        self._segments, self._parts, self._left, self._to = segments, parts, deque(parts), to
        self._processes = processes
        self._reader: Reader | None = None
        self._coming: dict[int, tuple[Arrived, torch.cuda.Event]] = {}
        self._longest = max(map(len, parts))
        self._stream = torch.cuda.Stream(to, priority=-1)
        self._room, rooms = self._rooms(segments)  # where what is read arrives
        by_segment = zip(rooms, segments, strict=True)
        self.staged = [room.view(segment.dtype).view(self._longest, *segment.shape) for room, segment in by_segment]
        self._read: Sequence[Readable] = segments
        self._unpack: Callable[[int], None] | None = None
        if format := _packed_as(segments) if kernels_run(to) else None:
            self._to_unpack(format)

    def _to_unpack(self, format: str) -> None:
        """Bring codes and scales as they are stored, and unpack them on the GPU."""
        from ragkv.kernels.unpacking import unpacking

        self._read = [Packed(segment) for segment in self._segments if isinstance(segment, StoredSegment)]
        self._room, codes = self._rooms(self._read)
        self._unpack = unpacking(codes, self.staged, format, CODECS[format].packed)

    def _rooms(self, segments: Sequence[Readable]) -> tuple[Tensor, Sequence[Tensor]]:
        """Room for the longest part's layers on the GPU, ``(bytes,)``, in all and of each."""
        sizes = [self._longest * segment.layer_bytes for segment in segments]
        room = torch.empty(sum(sizes), dtype=torch.uint8, device=self._to)
        room.record_stream(self._stream)
        return room, room.split(sizes)

    def start(self, arrived: Callable[[range], Sequence[Arrived]]) -> None:
        """Begin to read; copies begin with the first call of `layer`, so that what comes before it is not held up.

        `arrived` is called for each part once it is staged, on that stream; it gives what `layer` gives.
        """
        self._arrived = arrived
        stored = [segment for segment in self._segments if isinstance(segment, StoredSegment)]
        as_stored = self._unpack or not any(segment.format in CODECS for segment in stored)
        if self._processes and as_stored and any(segment.local for segment in stored):
            self._reader = ProcessReader(self._read, self._parts, self._processes)
        elif not all(map(_within_reach, self._segments)):
            self._reader = ThreadReader(self._read, self._parts)
        self._stream.wait_stream(torch.cuda.current_stream(self._to))  # where parts go may still be in use

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
        with torch.cuda.stream(self._stream):
            if self._reader is None:
                for room, segment in zip(self.staged, self._segments, strict=True):
                    assert isinstance(segment, SegmentInMemory)
                    room[: len(part)].copy_(segment.layers[part.start : part.stop], non_blocking=True)
            else:
                self._reader.part(self._room)
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
