"""A stored segment: its file, wherever it lies, read tensor by tensor and checked."""

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ragkv.prompt import Segment
from ragkv.store.files import Folder, StoreError
from ragkv.store.layout import Layout, layer_name
from ragkv.store.quantize import CODECS, dequantize
from ragkv.store.segment_file import BY_NAME, Piece, Source, as_bytes, piece_of, read_header, read_into


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
        """As which its keys and values are stored, see `ragkv.store.quantize`."""
        return self._layout.format

    def read(self, name: str) -> Tensor:
        """One tensor of the file, checked."""
        dtype, shape = self._expected[name]
        tensor = torch.empty(shape, dtype=BY_NAME[dtype])
        self.read_into([name], [as_bytes(tensor)])
        return tensor

    def read_into(self, names: list[str], rooms: Sequence[memoryview]) -> None:
        """Tensors of the file, checked, into as many bytes as they have."""
        try:
            read_into(self._source, self._header, names, rooms)
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
        key_scales, value_scales = self.scales
        return dequantize(stored, key_scales[index], value_scales[index], self._layout.format, self._layout.dtype)

    @property
    def layer_bytes(self) -> int:
        """As `layer` gives it."""
        return math.prod(self.shape) * self.dtype.itemsize

    def fill(self, first: int, rooms: Sequence[memoryview]) -> None:
        """Layers from `first` on, as `layer` gives them, each into `layer_bytes` on the host.

        Other threads may take over the interpreter at each call of PyTorch, and this one then waits for them: layers
        that are stored as they are needed take none.
        """
        layers = range(first, first + len(rooms))
        if self._layout.format not in CODECS:
            self.read_into([layer_name(i) for i in layers], rooms)
            return
        for index, room in zip(layers, rooms, strict=True):
            room[:] = as_bytes(self.layer(index))

    @property
    def local(self) -> bool:
        """Whether it lies in a local file, which other processes can read too."""
        return self._source.local is not None

    def piece(self, index: int) -> Piece | None:
        """A layer as it is stored, if it lies in a local file."""
        return self._pieces[index] if self.local else None

    def share(self, index: int, room: memoryview) -> Piece | None:
        """As `Readable.share`."""
        if self._layout.format not in CODECS and (piece := self.piece(index)):
            return piece
        self.fill(index, [room])
        return None

    @cached_property
    def _pieces(self) -> list[Piece]:
        path = str(self._source.local)
        return [piece_of(path, self._header, layer_name(i)) for i in range(self._layout.layers)]

    @cached_property
    def scales(self) -> tuple[Tensor, Tensor]:
        """Of keys and of values, of all layers, in a smaller format: see `ragkv.store.quantize`."""
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
    layer_bytes
        Of a layer: codes, scales of keys, scales of values.
    """

    def __init__(self, stored: StoredSegment):
        _, kv_heads, tokens, head_dim = stored.shape
        self._stored, self._codes = stored, 2 * kv_heads * tokens * (head_dim // CODECS[stored.format].packed)
        self._keys, self._values = kv_heads * head_dim, kv_heads * tokens  # scales of a layer, one byte each
        self.layer_bytes = self._codes + self._keys + self._values

    def fill(self, first: int, rooms: Sequence[memoryview]) -> None:
        """Layers from `first` on, each into `layer_bytes` on the host."""
        layers = range(first, first + len(rooms))
        self._stored.read_into([layer_name(i) for i in layers], [room[: self._codes] for room in rooms])
        for index, room in zip(layers, rooms, strict=True):
            self._add_scales(index, room)

    def share(self, index: int, room: memoryview) -> Piece | None:
        """As `Readable.share`: codes are read elsewhere."""
        if piece := self._stored.piece(index):
            self._add_scales(index, room)
        else:
            self.fill(index, [room])
        return piece

    def _add_scales(self, index: int, room: memoryview) -> None:
        keys, values = self._scales
        behind = self._codes + self._keys
        room[self._codes : behind] = keys[index * self._keys :][: self._keys]
        room[behind:] = values[index * self._values :][: self._values]

    @cached_property
    def _scales(self) -> tuple[memoryview, memoryview]:
        """Of keys and of values, layer by layer."""
        keys, values = map(as_bytes, self._stored.scales)
        return keys, values


class SegmentInFolder:
    """A segment's file that is read part by part."""

    def __init__(self, folder: Folder, name: str):
        self._folder, self._name, self.size = folder, name, folder.size(name)
        self.local = folder.path(name) if folder.local else None

    def read(self, start: int, stop: int) -> bytes:
        return self._folder.read(self._name, start, min(stop, self.size))

    def read_into(self, start: int, rooms: Sequence[memoryview]) -> int:
        return self._folder.read_into(self._name, start, rooms)
