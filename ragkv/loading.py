"""The reused keys and values of a prompt, layer by layer, from the store to the device."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, device

from ragkv.cache import KV
from ragkv.prompt import Segment
from ragkv.store import KVStore, Layout, StoreError


class SegmentKV(Protocol):
    """A segment's values, wherever they come from."""

    def layer(self, index: int) -> Tensor:
        """Keys before rotation and values, ``(2, kv_heads, tokens, head_dim)``."""

    def surprisal(self) -> Tensor:
        """``(tokens,)`` in float32."""


@dataclass(frozen=True)
class ComputedSegment:
    """A segment that was computed just now: `compute_segment`'s result."""

    layers: Tensor
    scores: Tensor

    def layer(self, index: int) -> Tensor:
        return self.layers[index]

    def surprisal(self) -> Tensor:
        return self.scores


class ReusedKV:
    """What a prompt takes from the store, layer by layer.

    Parameters
    ----------
    prefix, chunks, question
        The segments of each part that is reused, in order; none where there is nothing to reuse.
    """

    def __init__(self, prefix: Sequence[SegmentKV], chunks: Sequence[SegmentKV], question: Sequence[SegmentKV]):
        self._prefix, self._chunks, self._question = prefix, chunks, question

    def prefix(self, index: int, to: device) -> KV | None:
        """One layer of the prefix, or None where nothing of it is reused."""
        return _side_by_side(self._prefix, index, to)

    def document(self, index: int, to: device) -> KV | None:
        """One layer of the chunks."""
        return _side_by_side(self._chunks, index, to)

    def all(self, index: int, to: device) -> KV | None:
        """One layer of everything reused."""
        return _side_by_side([*self._prefix, *self._chunks, *self._question], index, to)

    def surprisal(self) -> Tensor:
        """Surprisal of the document's tokens, ``(document,)``."""
        return torch.cat([segment.surprisal() for segment in self._chunks])


def _side_by_side(segments: Sequence[SegmentKV], index: int, to: device) -> KV | None:
    """One layer of several segments: keys before rotation and values, ``(1, kv_heads, tokens, head_dim)`` each."""
    if not segments:
        return None
    keys, values = torch.cat([segment.layer(index) for segment in segments], dim=2).to(to)
    return keys[None], values[None]


def open_segments(store: KVStore, layout: Layout, segments: list[Segment]) -> list[SegmentKV]:
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
