"""Stored keys and values on their way into the memory of the layers, ahead of the layers that need them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ragkv.fusion.cache import write_first
from ragkv.fusion.clock import Clock
from ragkv.fusion.memory import Memory
from ragkv.kernels import kernels_run
from ragkv.loading.layer_groups import device_spans, layer_groups
from ragkv.loading.reused import ReusedKV, side_by_side
from ragkv.loading.segments import SegmentInMemory, SegmentKV
from ragkv.loading.transfer import Transfer
from ragkv.loading.workers import ReadWorkers


class Placement:
    """Writes a prompt's stored keys and values into the memory of its layers.

    Segments that are on a layer's GPU already are placed at once by one kernel, if the memory is allocated. Otherwise a
    `Transfer` copies and places them while the GPU computes the layers before. On a CPU each layer is read and placed
    when it is reached.
    """

    def __init__(self, reused: ReusedKV, memory: Memory, clock: Clock):
        self._reused, self._memory, self._clock = reused, memory, clock
        self._placed: set[int] = set()  # layers
        self._transfers: dict[int, Transfer] = {}  # by layer
        self._unread: dict[int, Sequence[SegmentKV]] = {}  # by layer

    def start(self, layers: range, *, prefix_only: bool = False) -> None:
        """Begin to place these layers, the first ones first.

        Parameters
        ----------
        prefix_only
            Only the prefix is reused in these layers: all other tokens are computed afresh.
        """
        segments = self._reused.segments(prefix_only=prefix_only)
        if not segments:
            return
        workers = {} if prefix_only else dict(self._memory.workers)  # they serve one transfer at a time
        with self._clock("load"):
            for span in device_spans(layers, self._memory.devices):
                self._start(span, segments, workers.pop(self._memory.devices[span.start], None))

    def finish(self, index: int) -> None:
        """Make sure that a layer's stored keys and values are in place for what the current stream does next."""
        if index in self._placed:
            return
        with self._clock("load"):
            if index in self._transfers:
                self._transfers.pop(index).layer(index)
            elif index in self._unread:
                segments = self._unread.pop(index)
                stored = side_by_side([segment.layer(index) for segment in segments], self._memory.devices[index])
                write_first(self._memory.layer(index), stored, self._memory.rotary[index])
        self._placed.add(index)

    def _start(self, span: range, segments: Sequence[SegmentKV], workers: ReadWorkers | None) -> None:
        """Begin to place layers of one device."""
        device = self._memory.devices[span.start]
        here = [s.layers for s in segments if isinstance(s, SegmentInMemory) and s.layers.device == device]
        if self._memory.preallocated and len(here) == len(segments) and kernels_run(device):
            place = _kernel([layers.contiguous() for layers in here], self._memory, range(len(self._memory.devices)))
            place(span, span.start)
            self._placed.update(span)
        elif _copies_overlap(device):
            transfer = Transfer(segments, layer_groups(span, self._memory.devices), device, workers)
            transfer.start(_placing(transfer.staged, self._memory, device))
            self._transfers |= dict.fromkeys(span, transfer)
        else:
            self._unread |= dict.fromkeys(span, segments)


def _copies_overlap(device: torch.device) -> bool:
    """Whether a device computes while something is copied to it."""
    return device.type == "cuda"


def _placing(staged: Sequence[Tensor], memory: Memory, device: torch.device) -> Callable[[range], None]:
    """A function that places a group's layers, once they are staged, on the current stream."""
    for rotary in memory.rotary:
        rotary.on(device)  # its angles are copied there now, not on the stream of the transfer
    if not kernels_run(device):
        return lambda group: _place_plainly(staged, memory, group)
    if memory.preallocated:
        place = _kernel(staged, memory, range(len(memory.devices)))
        return lambda group: place(group, 0)
    return lambda group: _kernel(staged, memory, group)(range(len(group)), 0)


def _kernel(sources: Sequence[Tensor], memory: Memory, layers: range) -> Callable[[range, int], None]:
    """`ragkv.kernels.placing.placing` into the memory of some layers."""
    from ragkv.kernels.placing import placing

    caches = [memory.layer(index) for index in layers]
    angles = [memory.rotary[index].on(sources[0].device) for index in layers]
    return placing(sources, caches, angles)


def _place_plainly(staged: Sequence[Tensor], memory: Memory, group: range) -> None:
    for offset, index in enumerate(group):
        stored = side_by_side([layers[offset] for layers in staged], memory.devices[index])
        write_first(memory.layer(index), stored, memory.rotary[index])
