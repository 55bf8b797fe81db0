"""Stored layers on their way to a GPU, on a stream of their own, while the GPU computes the layers before them."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, device

from ragkv.kernels import kernels_run
from ragkv.loading.copy_stream import CopyStream, gpu_stream
from ragkv.loading.readers import LayerReader, ThreadReader, WorkerReader
from ragkv.loading.segments import LayerSource, PackedInMemory, SegmentInMemory, SegmentKV, adjacent, as_one
from ragkv.loading.workers import ReadWorkers
from ragkv.store.quantize import CODECS
from ragkv.store.stored_segment import PackedSegment, StoredSegment

GROUPS_IN_FLIGHT = 2  # groups that are in flight at a time


class Transfer:
    """Copies stored layers to a GPU in groups, some of them ahead of the layer that is computed.

    Copies from pinned memory and from other GPUs run while the GPU computes. Other segments are read into pinned memory
    first, by threads or worker processes. What is stored in eight or four bits is copied as it is and unpacked on the
    GPU. Segments that are adjacent in memory, as a `PrefetchingStore` reads them, are copied together.

    All groups are staged in the same buffers, one after the other. A group is placed on the stream that copies it, so
    the next one overwrites the buffers only after that.

    Parameters
    ----------
    segments
        What is copied, with all layers of the model.
    groups
        The layers, in order; those of a group are copied and signalled together.
    to
        The GPU.
    workers
        Read what lies in local files and needs no unpacking on the host.
    stream
        Where copies and placing run; by default `gpu_stream`.

    Attributes
    ----------
    staged
        For each segment, the buffer that a group's layers arrive in, ``(layers, 2, kv_heads, tokens, head_dim)``, each
        layer contiguous. A group shorter than the longest one takes the first layers.
    """

    def __init__(
        self,
        segments: Sequence[SegmentKV],
        groups: Sequence[range],
        to: device,
        workers: ReadWorkers | None = None,
        stream: CopyStream | None = None,
    ):
        self._segments = segments
        self._parts = groups
        self._to = to
        self._workers = workers
        self._stream = stream or gpu_stream(to)

        self._not_issued = deque(groups)
        self._in_flight: dict[int, object] = {}  # the event of each layer's group
        self._longest = max(map(len, groups))
        self._reader: LayerReader | None = None

        format = _packed_as(segments) if kernels_run(to) else None
        self._copied: Sequence[LayerSource] = segments if format is None else [_packed(s) for s in segments]
        in_memory = [segment for segment in self._copied if _copies_directly(segment)]
        self._direct = len(in_memory) == len(segments)
        together = adjacent(in_memory) if self._direct else []
        self._sources = [as_one(run).view(torch.uint8) for run in together]  # for each run, (layers, bytes)
        runs: Sequence[Sequence[LayerSource]] = together or [[segment] for segment in self._copied]

        sizes = [[segment.layer_bytes for segment in run] for run in runs]
        self._buffer, parts = self._allocate([sum(run) for run in sizes])
        self._targets = [part.view(self._longest, -1) for part in parts]  # for each run, (layers, bytes)
        arrived = [
            layers for target, run in zip(self._targets, sizes, strict=True) for layers in target.split(run, dim=1)
        ]  # for each segment, (layers, bytes)
        self._unpack: Callable[[int], None] | None = None
        if format is None:
            pairs = zip(arrived, segments, strict=True)
            self.staged = [layers.view(segment.dtype).unflatten(1, segment.shape) for layers, segment in pairs]
        else:
            self.staged = self._unpacked(arrived, format)

    def start(self, place: Callable[[range], object]) -> None:
        """Begin to read. Copies begin with the first call of `layer`, so that what comes before it is not held up.

        Parameters
        ----------
        place
            Called for each group once it is staged, with its layers, while the copying stream is the current one.
        """
        self._place = place
        stored = [segment for segment in self._segments if isinstance(segment, StoredSegment)]
        as_stored = self._unpack is not None or not any(segment.format in CODECS for segment in stored)
        if self._workers and as_stored and any(segment.local for segment in stored):
            self._reader = WorkerReader(self._copied, self._parts, self._workers)
        elif not self._direct:
            self._reader = ThreadReader(self._copied, self._parts)
        self._stream.wait_for_computation()  # the memory that groups are placed in may still be in use

    def layer(self, index: int) -> None:
        """Make the current stream wait for a layer; the host waits only for what is still being read.

        Each layer is asked for once, in order.
        """
        while index not in self._in_flight:
            self._issue()
        self._stream.computation_waits(self._in_flight.pop(index))
        while self._not_issued and len(self._in_flight) <= (GROUPS_IN_FLIGHT - 1) * self._longest:
            if self._reader and not self._reader.ready():
                break
            self._issue()

    def _issue(self) -> None:
        """Copy and place the next group."""
        group = self._not_issued.popleft()
        with self._stream.active():
            if self._reader is None:
                self._copy(group)
            else:
                self._reader.copy_next(self._buffer)
            if self._unpack:
                self._unpack(len(group))
            self._place(group)
            event = self._stream.record()
        self._in_flight |= dict.fromkeys(group, event)

    def _copy(self, group: range) -> None:
        """Stage a group of segments that lie in memory."""
        for source, target in zip(self._sources, self._targets, strict=True):
            if source.is_contiguous():
                target[: len(group)].copy_(source[group.start : group.stop], non_blocking=True)
            else:  # layer by layer: the host would wait for a copy that is not of contiguous memory
                for offset, index in enumerate(group):
                    target[offset].copy_(source[index], non_blocking=True)

    def _unpacked(self, arrived: Sequence[Tensor], format: str) -> list[Tensor]:
        """Staging buffers that each group is unpacked into when it has arrived, ``(layers, bytes)`` of each segment."""
        from ragkv.kernels.unpacking import unpacking

        _, parts = self._allocate([segment.layer_bytes for segment in self._segments])
        shapes = [(self._longest, *segment.shape) for segment in self._segments]
        dtype = self._segments[0].dtype
        staged = [part.view(dtype).view(shape) for part, shape in zip(parts, shapes, strict=True)]
        self._unpack = unpacking(arrived, staged, format, CODECS[format].packed)
        return staged

    def _allocate(self, layer_bytes: Sequence[int]) -> tuple[Tensor, Sequence[Tensor]]:
        """A buffer for the longest group, ``(bytes,)``, and its parts, one for each of these sizes of a layer."""
        sizes = [self._longest * size for size in layer_bytes]
        buffer = torch.empty(sum(sizes), dtype=torch.uint8, device=self._to)
        self._stream.uses(buffer)
        return buffer, buffer.split(sizes)


def _packed(segment: SegmentKV) -> LayerSource:
    """A quantised segment's codes and scales, as they are stored."""
    if isinstance(segment, PackedInMemory):
        return segment.packed
    assert isinstance(segment, StoredSegment)
    return PackedSegment(segment)


def _copies_directly(segment: LayerSource) -> TypeGuard[SegmentInMemory]:
    """Whether a segment's copy to a GPU needs nothing more of the host."""
    return isinstance(segment, SegmentInMemory) and (segment.layers.is_cuda or segment.layers.is_pinned())


def _packed_as(segments: Sequence[SegmentKV]) -> str | None:
    """The smaller format that all segments are stored in, if it is one and the same."""
    formats = {s.format if isinstance(s, StoredSegment | PackedInMemory) else "model" for s in segments}
    return formats.pop() if len(formats) == 1 and formats <= CODECS.keys() else None
