"""The stored segments that a prompt reuses."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, device

from ragkv.loading.segments import SegmentKV, Segments
from ragkv.models.decoder import KV
from ragkv.prompt import Segment
from ragkv.store import Layout, StoreError


class ReusedKV:
    """The stored segments of a prompt, in the order of its tokens.

    Parameters
    ----------
    prefix, chunks, question
        The segments that each part of the prompt reuses; empty where it reuses nothing.
    """

    def __init__(
        self,
        prefix: Sequence[SegmentKV] = (),
        chunks: Sequence[SegmentKV] = (),
        question: Sequence[SegmentKV] = (),
    ):
        self._prefix = list(prefix)
        self._chunks = list(chunks)
        self._question = list(question)

    def segments(self, *, prefix_only: bool = False) -> list[SegmentKV]:
        """All reused segments, or only the prefix."""
        return self._prefix if prefix_only else self._prefix + self._chunks + self._question

    def surprisal(self) -> Tensor:
        """Surprisal of the document's tokens, ``(document,)``."""
        return torch.cat([segment.surprisal() for segment in self._chunks])


def side_by_side(layers: Sequence[Tensor], to: device) -> KV:
    """One layer of several segments as one: keys and values, ``(1, kv_heads, tokens, head_dim)`` each.

    Parameters
    ----------
    layers
        ``(2, kv_heads, tokens, head_dim)`` each.
    """
    if to.type == "cuda":  # one by one, as the host does not wait for copies from pinned memory
        layers = [layer.to(to, non_blocking=True) for layer in layers]
    keys, values = torch.cat(list(layers), dim=2).to(to)
    return keys[None], values[None]


def open_segments(store: Segments, layout: Layout, segments: Sequence[Segment]) -> list[SegmentKV]:
    """Open stored segments; their headers are checked.

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
