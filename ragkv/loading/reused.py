"""The reused keys and values of a prompt, layer by layer, from the store to the device."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, device

from ragkv.kernels import kernels_run
from ragkv.loading.processes import ReadProcesses
from ragkv.loading.segments import SegmentInMemory, SegmentKV, Segments
from ragkv.loading.transfer import PartsAhead
from ragkv.models.decoder import KV
from ragkv.models.rotary import Rotary
from ragkv.prompt import Segment
from ragkv.store import Layout, StoreError


class ReusedKV:
    """What a prompt takes from the store, layer by layer.

    Parameters
    ----------
    prefix, chunks, question
        The segments of each part that is reused, in order; none where there is nothing to reuse.
    """

    def __init__(self, prefix: Sequence[SegmentKV], chunks: Sequence[SegmentKV], question: Sequence[SegmentKV]):
        self._prefix, self._chunks, self._whole = prefix, chunks, [*prefix, *chunks, *question]
        self._coming: dict[int, PartsAhead[KV]] = {}

    def start(self, parts: Sequence[range], to: device) -> None:
        """Begin to copy what `all` will be asked for: these layers, in order, to their GPU. Nothing on a CPU."""
        if not self._whole or not parts or to.type != "cuda":
            return
        ahead: PartsAhead[KV] = PartsAhead(self._whole, parts, to)

        def arrived(part: range) -> list[KV]:
            return [_side_by_side([staged[i] for staged in ahead.staged], to) for i in range(len(part))]

        ahead.start(arrived)
        self._coming |= {index: ahead for part in parts for index in part}

    def place(
        self,
        parts: Sequence[range],
        rooms: Sequence[KV],
        rotary: Rotary,
        processes: ReadProcesses | None = None,
        *,
        prefix_only: bool = False,
    ) -> dict[int, PartsAhead[None]] | None:
        """Begin to write layers of one GPU to where they belong: at once what lies there, the rest while it computes.

        Parameters
        ----------
        parts
            The layers, in order; those of a part arrive together.
        rooms
            Every layer's keys and values, ``(1, kv_heads, slots, head_dim)`` each.
        processes
            As `PartsAhead` takes them.
        prefix_only
            Nothing else is reused in these layers.

        Returns
        -------
        dict
            What is on its way, by layer; None where nothing was begun, and `all` gives the layers one by one.
        """
        to = rooms[parts[0].start][0].device
        segments = self._prefix if prefix_only else self._whole
        here = [s.layers.contiguous() for s in segments if isinstance(s, SegmentInMemory) and s.layers.device == to]
        at_once = len(here) == len(segments)
        if not segments or not kernels_run(to) or not (at_once or to.type == "cuda"):
            return None
        from ragkv.kernels.placing import placing

        if at_once:
            placing(here, rooms, *rotary.on(to))(range(parts[0].start, parts[-1].stop), parts[0].start)
            return {}
        ahead: PartsAhead[None] = PartsAhead(segments, parts, to, processes)
        place = placing(ahead.staged, rooms, *rotary.on(to))

        def arrived(part: range) -> list[None]:
            place(part, 0)
            return [None] * len(part)

        ahead.start(arrived)
        return {index: ahead for part in parts for index in part}

    def prefix(self, index: int, to: device) -> KV | None:
        """One layer of the prefix, or None where nothing of it is reused."""
        return _side_by_side([segment.layer(index) for segment in self._prefix], to) if self._prefix else None

    def document(self, index: int, to: device) -> KV | None:
        """One layer of the chunks."""
        return _side_by_side([segment.layer(index) for segment in self._chunks], to) if self._chunks else None

    def all(self, index: int, to: device) -> KV | None:
        """One layer of everything reused."""
        if index in self._coming:
            states = self._coming.pop(index).layer(index)
            for part in states:
                part.record_stream(torch.cuda.current_stream(to))
            return states
        return _side_by_side([segment.layer(index) for segment in self._whole], to) if self._whole else None

    def surprisal(self) -> Tensor:
        """Surprisal of the document's tokens, ``(document,)``."""
        return torch.cat([segment.surprisal() for segment in self._chunks])


def _side_by_side(parts: Sequence[Tensor], to: device) -> KV:
    """One layer of several segments: keys before rotation and values, ``(1, kv_heads, tokens, head_dim)`` each."""
    if to.type == "cuda":  # each on its own: from pinned memory the host does not wait
        parts = [part.to(to, non_blocking=True) for part in parts]
    keys, values = torch.cat(list(parts), dim=2).to(to)
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
