"""What a prefill needs to know of a prompt's segments, wherever their keys and values are."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ragkv.prompt import Segment
from ragkv.store import Layout
from ragkv.store.quantize import unpack_layer
from ragkv.store.segment_file import ByteRange, as_bytes


class LayerSource(Protocol):
    """Layers of equal size that can be read into host memory.

    Attributes
    ----------
    layer_bytes
        The size of a layer.
    """

    @property
    def layer_bytes(self) -> int: ...

    def read_layers(self, first: int, buffers: Sequence[memoryview]) -> None:
        """Read consecutive layers, from `first` on, into buffers of `layer_bytes` each."""

    def delegate(self, index: int, buffer: memoryview) -> ByteRange | None:
        """Prepare a layer's buffer so that a worker process can read the rest of it.

        Returns
        -------
        ByteRange
            What the worker must read to the beginning of the buffer; the bytes behind it are written here. None if no
            worker can read this layer: then all of it is written here.
        """


class SegmentKV(LayerSource, Protocol):
    """A segment's keys, values and surprisal.

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
    """A segment in memory: the result of `compute_segment`, or a stored segment that was prefetched.

    Attributes
    ----------
    layers
        Keys before rotation and values, ``(layers, 2, kv_heads, tokens, head_dim)``.
    scores
        Surprisal, ``(tokens,)``.
    """

    layers: Tensor
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

    def read_layers(self, first: int, buffers: Sequence[memoryview]) -> None:
        layers = self.layers[first : first + len(buffers)]
        for layer, buffer in zip(layers, buffers, strict=True):
            torch.frombuffer(buffer, dtype=self.dtype).view(self.shape).copy_(layer)

    def delegate(self, index: int, buffer: memoryview) -> None:
        self.read_layers(index, [buffer])

    def surprisal(self) -> Tensor:
        return self.scores

    def to(self, where: str) -> "SegmentInMemory":
        """Copy to a device, or to pinned host memory (``"pinned"``), from which copies to a GPU run asynchronously."""
        layers = self.layers.pin_memory() if where == "pinned" else self.layers.to(where)
        return SegmentInMemory(layers, self.scores)


@dataclass(frozen=True)
class PackedInMemory:
    """A quantised segment in memory as it is stored: its layers are unpacked when they are used, if possible on a GPU.

    Attributes
    ----------
    packed
        Its ``layers`` are bytes, ``(layers, bytes)``: see `ragkv.store.quantize.packed_sizes`.
    shape, dtype
        Of an unpacked layer.
    format
        See `ragkv.store.quantize`.
    """

    packed: SegmentInMemory
    shape: tuple[int, ...]
    dtype: torch.dtype
    format: str

    @property
    def layer_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def layer(self, index: int) -> Tensor:
        return unpack_layer(self.packed.layers[index], self.shape, self.format, self.dtype)

    def read_layers(self, first: int, buffers: Sequence[memoryview]) -> None:
        for index, buffer in enumerate(buffers, first):
            buffer[:] = as_bytes(self.layer(index))

    def delegate(self, index: int, buffer: memoryview) -> None:
        self.read_layers(index, [buffer])

    def surprisal(self) -> Tensor:
        return self.packed.scores


def adjacent(segments: Iterable[SegmentInMemory]) -> list[list[SegmentInMemory]]:
    """Split segments, in order, into runs that `as_one` can take together: side by side in each row of one buffer."""
    runs: list[list[SegmentInMemory]] = []
    for segment in segments:
        if runs and _extends(runs[-1], segment):
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return runs


def as_one(run: Sequence[SegmentInMemory]) -> Tensor:
    """All layers of adjacent segments, each layer in one piece, ``(layers, numbers)``; without copying if possible."""
    first = run[0].layers
    if len(run) == 1:
        return first.flatten(1)
    numbers = sum(segment.layers[0].numel() for segment in run)
    return first.as_strided((len(first), numbers), (first.stride(0), 1))


def _extends(run: Sequence[SegmentInMemory], segment: SegmentInMemory) -> bool:
    """Whether every layer of a segment begins where the same layer of a run's last segment ends."""
    first, last, following = run[0].layers, run[-1].layers, segment.layers
    if following.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
        return False
    alike = (following.dtype, len(following), following.stride(0)) == (first.dtype, len(first), first.stride(0))
    in_one_piece = last[0].is_contiguous() and following[0].is_contiguous()
    follows = following.storage_offset() == last.storage_offset() + last[0].numel()
    end = following.storage_offset() + following[0].numel()
    in_the_row = end - first.storage_offset() <= first.stride(0)
    return alike and in_one_piece and follows and in_the_row


class Segments(Protocol):
    """Where segments come from: a `KVStore`, a `PrefetchingStore`, or memory."""

    url: str
    format: str

    def open(self, layout: Layout, segment: Segment) -> SegmentKV:
        """The segment; a KeyError if it is not there."""

    def other_model(self, layout: Layout) -> str | None:
        """The fingerprint of another model that wrote here, if the first segment found is of one."""
