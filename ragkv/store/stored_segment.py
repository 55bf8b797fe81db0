"""A stored segment: its file, wherever it lies, read tensor by tensor and checked."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ragkv.prompt import Segment
from ragkv.quantize import CODECS, dequantize
from ragkv.store.files import Folder, StoreError
from ragkv.store.layout import Layout, layer_name
from ragkv.store.segment_file import BY_NAME, Source, read_header, read_into


class StoredSegment:
    """A segment's file: each tensor is read on its own and checked against its checksum.

    Parameters
    ----------
    identity
        The segment's in this layout, which the file's name is made from.
    """

    def __init__(self, path: str, layout: Layout, segment: Segment, identity: dict[str, int | str], source: Source):
        self.path, self._source, self._layout = path, source, layout
        try:
            self._header = read_header(source)
            self._expected = layout.tensors(segment)
            found = {name: (entry.dtype, entry.shape) for name, entry in self._header.tensors.items()}
            if found != self._expected or self._header.identity != identity:
                raise ValueError("its header is not what this model and chunk need")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._damaged(str(error)) from error

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a layer, ``(2, kv_heads, tokens, head_dim)``."""
        return 2, self._layout.kv_heads, self._expected["surprisal"][1][0], self._layout.head_dim

    @property
    def dtype(self) -> torch.dtype:
        return self._layout.dtype

    @property
    def format(self) -> str:
        """As which its keys and values are stored, see `ragkv.quantize`."""
        return self._layout.format

    def read(self, name: str) -> Tensor:
        """One tensor of the file, checked."""
        dtype, shape = self._expected[name]
        tensor = torch.empty(shape, dtype=BY_NAME[dtype])
        self._read_into([name], [tensor])
        return tensor

    def _read_into(self, names: list[str], tensors: Sequence[Tensor]) -> None:
        try:
            read_into(self._source, self._header, names, tensors)
        except (ValueError, FileNotFoundError) as error:
            raise self._damaged(str(error)) from error

    def check(self) -> None:
        """Read all of the file.

        Raises
        ------
        StoreError
            It is damaged.
        """
        for name in self._expected:
            self.read(name)

    def layer(self, index: int) -> Tensor:
        """Keys before rotation and values of one layer, ``(2, kv_heads, tokens, head_dim)``."""
        stored = self.read(layer_name(index))
        if self._layout.format not in CODECS:
            return stored
        key_scales, value_scales = self._scales
        return dequantize(stored, key_scales[index], value_scales[index], self._layout.format, self._layout.dtype)

    def fill(self, first: int, rooms: Sequence[Tensor]) -> None:
        """Layers from `first` on into contiguous tensors on the CPU, each of as many numbers as a layer."""
        layers = range(first, first + len(rooms))
        if self._layout.format not in CODECS:
            self._read_into([layer_name(i) for i in layers], rooms)
            return
        for index, room in zip(layers, rooms, strict=True):
            room.copy_(self.layer(index).flatten())

    @cached_property
    def _scales(self) -> tuple[Tensor, Tensor]:
        return self.read("key_scales"), self.read("value_scales")

    def surprisal(self) -> Tensor:
        """-log p of each token given those before it in the segment, ``(tokens,)``; 0 for the first."""
        return self.read("surprisal")

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            f"the store's file {self.path} is damaged ({what}); it was not used. Run precompute again on the same "
            "prompts: it checks every file and rewrites damaged ones"
        )


class Packed:
    """A stored segment in a smaller format, read as it is stored; a GPU unpacks it (`ragkv.kernels.unpacking`).

    Attributes
    ----------
    shape, dtype
        Of a layer, in bytes: codes, scales of keys, scales of values.
    """

    dtype = torch.uint8

    def __init__(self, stored: StoredSegment):
        _, kv_heads, tokens, head_dim = stored.shape
        self._stored, self._codes = stored, 2 * kv_heads * tokens * (head_dim // CODECS[stored.format].packed)
        self.shape = (self._codes + kv_heads * (head_dim + tokens),)

    def fill(self, first: int, rooms: Sequence[Tensor]) -> None:
        """Layers from `first` on into bytes on the CPU."""
        layers = range(first, first + len(rooms))
        self._stored._read_into([layer_name(i) for i in layers], [room[: self._codes] for room in rooms])
        for index, room in zip(layers, rooms, strict=True):
            memoryview(room.numpy())[self._codes :] = self._scales[index]  # without letting other threads in between

    @cached_property
    def _scales(self) -> list[bytes]:
        """By layer, of keys and then of values."""
        by_layer = torch.cat([scales.flatten(1) for scales in self._stored._scales], dim=1)  # (layers, bytes)
        return [scales.tobytes() for scales in by_layer.numpy()]


class SegmentInFolder:
    """A segment's file that is read part by part."""

    def __init__(self, folder: Folder, name: str):
        self._folder, self._name, self.size = folder, name, folder.size(name)

    def read(self, start: int, stop: int) -> bytes:
        return self._folder.read(self._name, start, min(stop, self.size))

    def read_into(self, start: int, rooms: Sequence[memoryview]) -> int:
        return self._folder.read_into(self._name, start, rooms)
