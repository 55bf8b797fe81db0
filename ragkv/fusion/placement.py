"""Stored keys and values on their way into the memory of the layers, ahead of the layers that need them."""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, islice
from typing import NamedTuple

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


class Run(NamedTuple):
    """Segments of one prompt, which lie side by side from its first slot on.

    Attributes
    ----------
    slot
        The prompt's first slot in the memory of a layer.
    """

    slot: int
    segments: Sequence[SegmentKV]


class Placement:
    """Writes the prompts' stored keys and values into the memory of their layers.

    Segments that are on a layer's GPU already are placed at once by one kernel, if the memory is allocated. Otherwise a
    `Transfer` copies and places them while the GPU computes the layers before. On a CPU each layer is read and placed
    when it is reached.

    Parameters
    ----------
    reused
        The stored segments of each prompt.
    extents
        The slots of each prompt in the memory of a layer.
    """

    def __init__(self, reused: Sequence[ReusedKV], extents: Sequence[range], memory: Memory, clock: Clock):
        self._reused = reused
        self._extents = extents
        self._memory = memory
        self._clock = clock
        self._placed: set[int] = set()  # layers
        self._transfers: dict[int, Transfer] = {}  # by layer
        self._unread: dict[int, Sequence[Run]] = {}  # by layer

    def start(self, layers: range, *, prefix_only: bool = False) -> None:
        """Begin to place these layers, the first ones first.

        Parameters
        ----------
        prefix_only
            Only the prefixes are reused in these layers: all other tokens are computed afresh.
        """
        of_prompts = [
            Run(extent.start, reused.segments(prefix_only=prefix_only))
            for reused, extent in zip(self._reused, self._extents, strict=True)
        ]
        runs = [run for run in of_prompts if run.segments]
        if not runs:
            return
        workers = {} if prefix_only else dict(self._memory.workers)  # they serve one transfer at a time
        with self._clock("load"):
            for span in device_spans(layers, self._memory.devices):
                self._start(span, runs, workers.pop(self._memory.devices[span.start], None))

    def finish(self, index: int) -> None:
        """Make sure that a layer's stored keys and values are in place for what the current stream does next."""
        if index in self._placed:
            return
        with self._clock("load"):
            if index in self._transfers:
                self._transfers.pop(index).layer(index)
            elif index in self._unread:
                runs = self._unread.pop(index)
                layers = (segment.layer(index) for run in runs for segment in run.segments)
                _write_plainly(layers, runs, self._memory, index)
        self._placed.add(index)

    def _start(self, span: range, runs: Sequence[Run], workers: ReadWorkers | None) -> None:
        """Begin to place layers of one device."""
        device = self._memory.devices[span.start]
        segments = [segment for run in runs for segment in run.segments]
        here = [s.layers for s in segments if isinstance(s, SegmentInMemory) and s.layers.device == device]
        if self._memory.preallocated and len(here) == len(segments) and kernels_run(device):
            sources = [layers.contiguous() for layers in here]
            place = _kernel(sources, runs, self._memory, range(len(self._memory.devices)))
            place(span, span.start)
            self._placed.update(span)
        elif _copies_overlap(device):
            transfer = Transfer(segments, layer_groups(span, self._memory.devices), device, workers)
            transfer.start(_placing(transfer.staged, runs, self._memory, device))
            self._transfers |= dict.fromkeys(span, transfer)
        else:
            self._unread |= dict.fromkeys(span, runs)


def _copies_overlap(device: torch.device) -> bool:
    """Whether a device computes while something is copied to it."""
    return device.type == "cuda"


def _placing(
    staged: Sequence[Tensor], runs: Sequence[Run], memory: Memory, device: torch.device
) -> Callable[[range], None]:
    """A function that places a group's layers, once they are staged, on the current stream."""
    for rotary in memory.rotary:
        rotary.on(device)  # its angles are copied there now, not on the stream of the transfer
    if not kernels_run(device):
        return lambda group: _place_plainly(staged, runs, memory, group)
    if memory.preallocated:
        place = _kernel(staged, runs, memory, range(len(memory.devices)))
        return lambda group: place(group, 0)
    return lambda group: _kernel(staged, runs, memory, group)(range(len(group)), 0)


def _kernel(
    sources: Sequence[Tensor], runs: Sequence[Run], memory: Memory, layers: range
) -> Callable[[range, int], None]:
    """`ragkv.kernels.placing.placing` into the memory of some layers."""
    from ragkv.kernels.placing import placing

    positions: list[int] = []  # of each segment's first token
    slots: list[int] = []
    for run in runs:
        *before, _ = accumulate((segment.shape[2] for segment in run.segments), initial=0)
        positions += before
        slots += [run.slot + position for position in before]
    caches = [memory.layer(index) for index in layers]
    angles = [memory.rotary[index].on(sources[0].device) for index in layers]
    return placing(sources, positions, slots, caches, angles)


def _place_plainly(staged: Sequence[Tensor], runs: Sequence[Run], memory: Memory, group: range) -> None:
    for offset, index in enumerate(group):
        _write_plainly((layers[offset] for layers in staged), runs, memory, index)


def _write_plainly(layers: Iterable[Tensor], runs: Sequence[Run], memory: Memory, index: int) -> None:
    """Write one layer of all segments, ``(2, kv_heads, tokens, head_dim)`` each, in the order of the runs."""
    remaining = iter(layers)
    keys, values = memory.layer(index)
    for run in runs:
        stored = side_by_side(list(islice(remaining, len(run.segments))), memory.devices[index])
        write_first((keys[:, :, run.slot :], values[:, :, run.slot :]), stored, memory.rotary[index])
