"""A prompt's segments with their keys and values, wherever they lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ragkv.prompt import Segment
from ragkv.store import Layout
from ragkv.store.segment_file import Piece


class Readable(Protocol):
    """Something with layers of one size.

    Attributes
    ----------
    layer_bytes
        Of each layer.
    """

    @property
    def layer_bytes(self) -> int: ...

    def fill(self, first: int, rooms: Sequence[memoryview]) -> None:
        """Layers from `first` on into memory on the host, each of as many bytes as a layer."""

    def share(self, index: int, room: memoryview) -> Piece | None:
        """One layer into such memory, but for the first bytes, if these can be read by another process: which."""


class SegmentKV(Readable, Protocol):
    """A segment's values, wherever they come from.

    Attributes
    ----------
    shape, dtype
        Of a layer, ``(2, kv_heads, tokens, head_dim)``.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def layer(self, index: int) -> Tensor:
        """Keys before rotation and values, ``(2, kv_heads, tokens, head_dim)``."""

    def surprisal(self) -> Tensor:
        """``(tokens,)`` in float32."""


@dataclass(frozen=True)
class SegmentInMemory:
    """A segment in memory: `compute_segment`'s result, or read from the store ahead of its use."""

    layers: Tensor  # (layers, 2, kv_heads, tokens, head_dim)
    scores: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.layers.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.layers.dtype

    @property
    def layer_bytes(self) -> int:
        return self.layers.nbytes // len(self.layers)

    def layer(self, index: int) -> Tensor:
        return self.layers[index]

    def fill(self, first: int, rooms: Sequence[memoryview]) -> None:
        for layer, room in zip(self.layers[first : first + len(rooms)], rooms, strict=True):
            torch.frombuffer(room, dtype=self.dtype).view(self.shape).copy_(layer)

    def share(self, index: int, room: memoryview) -> None:
        self.fill(index, [room])

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
