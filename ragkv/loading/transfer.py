"""Stored layers on their way to a GPU, on a stream of their own, while the GPU computes the layers before them."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, device

from ragkv.kernels import kernels_run
from ragkv.loading.copy_stream import CopyStream, gpu_stream
from ragkv.loading.readers import LayerReader, ThreadReader, WorkerReader
from ragkv.loading.segments import LayerSource, SegmentInMemory, SegmentKV, adjacent, as_one
from ragkv.loading.workers import ReadWorkers
from ragkv.store.quantize import CODECS
from ragkv.store.stored_segment import PackedSegment, StoredSegment

GROUPS_IN_FLIGHT = 2  # groups that are in flight at a time


class Transfer:
    """Copies stored layers to a GPU in groups, some of them ahead of the layer that is computed.

    Copies from pinned memory and from other GPUs run while the GPU computes. Other segments are read into pinned memory
    first, by threads or worker processes. What is stored in eight or four bits is unpacked on the GPU. Segments that
    are adjacent in memory, as a `PrefetchingStore` reads them, are copied together.

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

        in_memory = [segment for segment in segments if _copies_directly(segment)]
        self._direct = len(in_memory) == len(segments)
        together = adjacent(in_memory) if self._direct else []
        self._sources = [as_one(run) for run in together]
        runs: Sequence[Sequence[SegmentKV]] = together or [[segment] for segment in segments]

        sizes = [sum(segment.layer_bytes for segment in run) for run in runs]
        self._buffer, parts = self._allocate(sizes)  # what the reader's bytes are copied into
        self._targets: list[Tensor] = []  # for each run, (layers, numbers)
        self.staged: list[Tensor] = []
        for run, part in zip(runs, parts, strict=True):
            target = part.view(run[0].dtype).view(self._longest, -1)
            self._targets.append(target)
            self.staged += _by_segment(target, run)
        self._read: Sequence[LayerSource] = segments
        self._unpack: Callable[[int], None] | None = None
        format = _packed_as(segments)
        if format is not None and kernels_run(to):
            self._unpack_on_gpu(format)

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
            self._reader = WorkerReader(self._read, self._parts, self._workers)
        elif not self._direct:
            self._reader = ThreadReader(self._read, self._parts)
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

    def _unpack_on_gpu(self, format: str) -> None:
        """Copy codes and scales as they are stored, and unpack them into the staging buffers."""
        from ragkv.kernels.unpacking import unpacking

        self._read = [PackedSegment(segment) for segment in self._segments if isinstance(segment, StoredSegment)]
        self._buffer, codes = self._allocate([segment.layer_bytes for segment in self._read])
        self._unpack = unpacking(codes, self.staged, format, CODECS[format].packed)

    def _allocate(self, layer_bytes: Sequence[int]) -> tuple[Tensor, Sequence[Tensor]]:
        """A buffer for the longest group, ``(bytes,)``, and its parts, one for each of these sizes of a layer."""
        sizes = [self._longest * size for size in layer_bytes]
        buffer = torch.empty(sum(sizes), dtype=torch.uint8, device=self._to)
        self._stream.uses(buffer)
        return buffer, buffer.split(sizes)


def _by_segment(layers: Tensor, run: Sequence[SegmentKV]) -> list[Tensor]:
    """The part of each segment in the layers of a run, ``(layers, numbers)``, in the segment's shape."""
    columns = layers.split([math.prod(segment.shape) for segment in run], dim=1)
    return [part.unflatten(1, segment.shape) for part, segment in zip(columns, run, strict=True)]


def _copies_directly(segment: SegmentKV) -> TypeGuard[SegmentInMemory]:
    """Whether a segment's copy to a GPU needs nothing more of the host."""
    return isinstance(segment, SegmentInMemory) and (segment.layers.is_cuda or segment.layers.is_pinned())


def _packed_as(segments: Sequence[SegmentKV]) -> str | None:
    """The smaller format that all segments are stored in, if it is one and the same."""
    formats = {segment.format if isinstance(segment, StoredSegment) else "model" for segment in segments}
    return formats.pop() if len(formats) == 1 and formats <= CODECS.keys() else None
