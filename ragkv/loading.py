"""The reused keys and values of a prompt, layer by layer, from the store to the device."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, device

from ragkv.cache import KV
from ragkv.decoder import Rotary
from ragkv.kernels import kernels_run
from ragkv.prompt import Segment
from ragkv.store import KVStore, Layout, StoreError


class SegmentKV(Protocol):
    """A segment's values, wherever they come from."""

    def layer(self, index: int) -> Tensor:
        """Keys before rotation and values, ``(2, kv_heads, tokens, head_dim)``."""

    def surprisal(self) -> Tensor:
        """``(tokens,)`` in float32."""


@dataclass(frozen=True)
class SegmentInMemory:
    """A segment in memory: `compute_segment`'s result, or read from the store ahead of its use."""

    layers: Tensor  # (layers, 2, kv_heads, tokens, head_dim)
    scores: Tensor

    def layer(self, index: int) -> Tensor:
        return self.layers[index]

    def surprisal(self) -> Tensor:
        return self.scores

    def to(self, where: str) -> "SegmentInMemory":
        """The same on a device, or in pinned host memory (``"pinned"``), from where copies overlap with computing."""
        return SegmentInMemory(self.layers.pin_memory() if where == "pinned" else self.layers.to(where), self.scores)


class Segments(Protocol):
    """Where stored segments come from: a KVStore, or one read ahead."""

    url: str
    format: str

    def open(self, layout: Layout, segment: Segment) -> SegmentKV:
        """The stored segment."""

    def other_model(self, layout: Layout) -> str | None:
        """The fingerprint of another model that wrote here."""


class ReadAhead:
    """A store whose segments are read into memory by a thread of their own, before they are needed.

    What is not read ahead comes from the store itself. Segments of the last two calls of `fetch` stay in memory.
    """

    def __init__(self, store: KVStore, layout: Layout):
        self.url, self.format, self._store, self._layout = store.url, store.format, store, layout
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._fetched: list[dict[Segment, Future[SegmentInMemory]]] = []

    def fetch(self, segments: Iterable[Segment]) -> None:
        """Begin to read these segments; returns at once."""
        before = self._fetched[-1] if self._fetched else {}
        now = {s: before.get(s) or self._thread.submit(self._read, s) for s in segments}
        self._fetched = [before, now]

    def wait(self) -> None:
        """Until everything asked for is read, so that reading disturbs no timing."""
        wait(self._fetched[-1].values() if self._fetched else [])

    def open(self, layout: Layout, segment: Segment) -> SegmentKV:
        """The segment from memory or from the store; what went wrong while reading it is raised here."""
        if layout == self._layout:
            for fetched in reversed(self._fetched):
                if segment in fetched:
                    return fetched[segment].result()
        return self._store.open(layout, segment)

    def other_model(self, layout: Layout) -> str | None:
        return self._store.other_model(layout)

    def _read(self, segment: Segment) -> SegmentInMemory:
        stored = self._store.open(self._layout, segment)
        layers = torch.stack([stored.layer(i) for i in range(self._layout.layers)])
        read = SegmentInMemory(layers, stored.surprisal())
        return read.to("pinned") if torch.cuda.is_available() else read


class ReusedKV:
    """What a prompt takes from the store, layer by layer.

    Parameters
    ----------
    prefix, chunks, question
        The segments of each part that is reused, in order; none where there is nothing to reuse.
    """

    def __init__(self, prefix: Sequence[SegmentKV], chunks: Sequence[SegmentKV], question: Sequence[SegmentKV]):
        self._prefix, self._chunks, self._question = prefix, chunks, question
        self._ahead: LayersAhead | None = None

    def start(self, devices: dict[int, device]) -> None:
        """Begin to copy what `all` will be asked for: these layers, in order, to their GPUs. Nothing on a CPU."""
        whole = [*self._prefix, *self._chunks, *self._question]
        if whole and all(to.type == "cuda" for to in devices.values()):
            self._ahead = LayersAhead(whole, devices)

    def place(self, layers: range, rooms: Sequence[KV], rotary: Rotary) -> bool:
        """Write layers that lie on their GPU already to where they belong, all at once; False where they do not.

        Parameters
        ----------
        rooms
            Every layer's keys and values, ``(1, kv_heads, slots, head_dim)`` each.
        """
        whole, to = [*self._prefix, *self._chunks, *self._question], rooms[layers.start][0].device
        there = [s.layers for s in whole if isinstance(s, SegmentInMemory) and s.layers.device == to]
        if not whole or len(there) < len(whole) or not kernels_run(to):
            return False
        from ragkv.kernels.placing import place_segments

        place_segments([states.contiguous() for states in there], layers, rooms, *rotary.on(to))
        return True

    def prefix(self, index: int, to: device) -> KV | None:
        """One layer of the prefix, or None where nothing of it is reused."""
        return _side_by_side(self._prefix, index, to)

    def document(self, index: int, to: device) -> KV | None:
        """One layer of the chunks."""
        return _side_by_side(self._chunks, index, to)

    def all(self, index: int, to: device) -> KV | None:
        """One layer of everything reused."""
        if self._ahead is not None and index in self._ahead:
            return self._ahead.layer(index)
        return _side_by_side([*self._prefix, *self._chunks, *self._question], index, to)

    def surprisal(self) -> Tensor:
        """Surprisal of the document's tokens, ``(document,)``."""
        return torch.cat([segment.surprisal() for segment in self._chunks])


class LayersAhead:
    """Layers on their way to the GPU, on a stream of their own, some layers ahead of the one that is computed.

    Parameters
    ----------
    segments
        From pinned memory their copies run while the GPU computes; from elsewhere the host waits for each.
    devices
        Where each layer goes.
    depth
        How many layers are on their way at a time.
    """

    def __init__(self, segments: Sequence[SegmentKV], devices: dict[int, device], depth: int = 2):
        self._segments, self._devices, self._depth = segments, devices, depth
        self._left = list(devices)
        self._streams = {to: torch.cuda.Stream(to) for to in set(devices.values())}
        self._coming: dict[int, tuple[KV | None, torch.cuda.Event]] = {}
        self._fill()

    def __contains__(self, index: int) -> bool:
        return index in self._coming or index in self._left

    def layer(self, index: int) -> KV | None:
        """One layer, once; the current stream waits for it, the host does not."""
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
            self._issue()

    def _issue(self) -> None:
        index = self._left.pop(0)
        to, arrived = self._devices[index], torch.cuda.Event()
        with torch.cuda.stream(self._streams[to]):
            states = _side_by_side(self._segments, index, to)
            arrived.record(self._streams[to])
        self._coming[index] = states, arrived


def _side_by_side(segments: Sequence[SegmentKV], index: int, to: device) -> KV | None:
    """One layer of several segments: keys before rotation and values, ``(1, kv_heads, tokens, head_dim)`` each."""
    if not segments:
        return None
    parts = [segment.layer(index) for segment in segments]
    if to.type == "cuda":  # each on its own: from pinned memory the host does not wait
        parts = [part.to(to, non_blocking=True) for part in parts]
    keys, values = torch.cat(parts, dim=2).to(to)
    return keys[None], values[None]


def open_segments(store: Segments, layout: Layout, segments: list[Segment]) -> list[SegmentKV]:
    """The stored segments, their headers checked.

    Raises
    ------
    StoreError
        Some are missing, or a file is damaged.
    """
    opened: list[SegmentKV] = []
    for segment in segments:
        with suppress(KeyError):  # missing ones are counted below
            opened.append(store.open(layout, segment))
    missing = len(segments) - len(opened)
    if missing:
        other = store.other_model(layout)
        cause = (
            f"it was written by another model ({other[:12]}..., this one is {layout.model[:12]}...)"
            if other
            else "they were not precomputed, or behind another context or in another dtype"
        )
        raise StoreError(
            f"{missing} of the prompt's {len(segments)} segments are not in the store {store.url!r}: {cause}. "
            "Run precompute(model, [prompt], store) first"
        )
    return opened
