"""Stored layers on their way to a GPU, on a stream of their own, while the GPU computes the layers before them."""

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, device

from ragkv.kernels import kernels_run
from ragkv.loading.copy_stream import CopyStream, gpu_stream
from ragkv.loading.readers import LayerReader, ThreadReader, WorkerReader
from ragkv.loading.segments import LayerSource, SegmentInMemory, SegmentKV
from ragkv.loading.workers import ReadWorkers
from ragkv.store.quantize import CODECS
from ragkv.store.stored_segment import PackedSegment, StoredSegment

GROUPS_IN_FLIGHT = 2  # groups that are in flight at a time


class Transfer:
    """Copies stored layers to a GPU in groups, some of them ahead of the layer that is computed.

    Copies from pinned memory and from other GPUs run while the GPU computes. Other segments are read into pinned memory
    first, by threads or worker processes. What is stored in eight or four bits is unpacked on the GPU.

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
        For each segment, the buffer that a group's layers arrive in, ``(layers, 2, kv_heads, tokens, head_dim)``. A
        group shorter than the longest one takes the first layers.
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

        self._buffer, buffers = self._allocate(segments)  # what the reader's bytes are copied into
        self._read: Sequence[LayerSource] = segments
        self._unpack: Callable[[int], None] | None = None
        self.staged = [
            buffer.view(segment.dtype).view(self._longest, *segment.shape)
            for buffer, segment in zip(buffers, segments, strict=True)
        ]
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
        elif not all(map(_copies_directly, self._segments)):
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
        for buffer, segment in zip(self.staged, self._segments, strict=True):
            assert isinstance(segment, SegmentInMemory)
            buffer[: len(group)].copy_(segment.layers[group.start : group.stop], non_blocking=True)

    def _unpack_on_gpu(self, format: str) -> None:
        """Copy codes and scales as they are stored, and unpack them into the staging buffers."""
        from ragkv.kernels.unpacking import unpacking

        self._read = [PackedSegment(segment) for segment in self._segments if isinstance(segment, StoredSegment)]
        self._buffer, codes = self._allocate(self._read)
        self._unpack = unpacking(codes, self.staged, format, CODECS[format].packed)

    def _allocate(self, segments: Sequence[LayerSource]) -> tuple[Tensor, Sequence[Tensor]]:
        """A buffer for the longest group's layers of all segments, ``(bytes,)``, and each segment's share of it."""
        sizes = [self._longest * segment.layer_bytes for segment in segments]
        buffer = torch.empty(sum(sizes), dtype=torch.uint8, device=self._to)
        self._stream.uses(buffer)
        return buffer, buffer.split(sizes)


def _copies_directly(segment: SegmentKV) -> bool:
    """Whether a segment's copy to a GPU needs nothing more of the host."""
    return isinstance(segment, SegmentInMemory) and (segment.layers.is_cuda or segment.layers.is_pinned())


def _packed_as(segments: Sequence[SegmentKV]) -> str | None:
    """The smaller format that all segments are stored in, if it is one and the same."""
    formats = {segment.format if isinstance(segment, StoredSegment) else "model" for segment in segments}
    return formats.pop() if len(formats) == 1 and formats <= CODECS.keys() else None
