"""A stored segment: its tensors are read from the file one by one, and each is verified."""

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ragkv.prompt import Segment
from ragkv.store.checksums import Checksums
from ragkv.store.errors import StoreError
from ragkv.store.layout import Layout, layer_name
from ragkv.store.quantize import CODECS, dequantize, packed_sizes
from ragkv.store.segment_file import BY_NAME, ByteRange, Source, as_bytes, byte_range, read_header, read_into


class StoredSegment:
    """A segment in the store. Every tensor that is read is verified against its checksum.

    Parameters
    ----------
    path
        Of the file, for messages.
    identity
        The segment's identity in this layout, which the header must have.
    source
        The file's bytes.
    checksums
        With the key that the file must have been written with, if any.

    Raises
    ------
    StoreError
        The file is damaged, or was written with another key.
    """

    def __init__(
        self,
        path: str,
        layout: Layout,
        segment: Segment,
        identity: dict[str, int | str],
        source: Source,
        checksums: Checksums,
    ):
        self.path = path
        self._source = source
        self._layout = layout
        self._checksums = checksums
        self._expected = layout.tensors(segment)
        try:
            self._header = read_header(source)
            tensors = {name: (entry.dtype, entry.shape) for name, entry in self._header.tensors.items()}
            if tensors != self._expected or self._header.identity != identity:
                raise ValueError("its header is not what this model and chunk need")
        except ValueError as error:
            raise self._damaged(str(error)) from error
        checksums.require(self._header.key_id, f"the store's file {path}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a layer, ``(2, kv_heads, tokens, head_dim)``."""
        _, (tokens,) = self._expected["surprisal"]
        return 2, self._layout.kv_heads, tokens, self._layout.head_dim

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of a layer as `layer` returns it."""
        return self._layout.dtype

    @property
    def format(self) -> str:
        """The format in which keys and values are stored (see `ragkv.store.quantize`)."""
        return self._layout.format

    @property
    def layer_bytes(self) -> int:
        """The size of a layer as `layer` returns it."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def local(self) -> bool:
        """Whether the segment is in a local file, which other processes can read too."""
        return self._source.local is not None

    def read(self, name: str) -> Tensor:
        """Read one tensor of the file."""
        dtype, shape = self._expected[name]
        tensor = torch.empty(shape, dtype=BY_NAME[dtype])
        self.read_into([name], [as_bytes(tensor)])
        return tensor

    def read_into(self, names: list[str], buffers: Sequence[memoryview]) -> None:
        """Read tensors of the file into buffers of exactly their sizes."""
        try:
            read_into(self._source, self._header, names, buffers, self._checksums)
        except (ValueError, FileNotFoundError) as error:
            raise self._damaged(str(error)) from error

    def check(self) -> None:
        """Verify the whole file.

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

    def read_layers(self, first: int, buffers: Sequence[memoryview]) -> None:
        """Read consecutive layers, in the form that `layer` returns, into buffers of `layer_bytes` each.

        Layers that are stored as computed are read without calling PyTorch: during such a call another thread may
        take the interpreter, and this one would have to wait to get it back.
        """
        layers = range(first, first + len(buffers))
        if self._layout.format not in CODECS:
            self.read_into([layer_name(i) for i in layers], buffers)
            return
        for index, buffer in zip(layers, buffers, strict=True):
            buffer[:] = as_bytes(self.layer(index))

    def layer_range(self, index: int) -> ByteRange | None:
        """Where a layer's codes or numbers lie, if they are in a local file."""
        return self._layer_ranges[index] if self.local else None

    def delegate(self, index: int, buffer: memoryview) -> ByteRange | None:
        """Return where the layer lies if a worker can read it; otherwise read it here. See `LayerSource.delegate`."""
        if self._layout.format not in CODECS and (layer_range := self.layer_range(index)):
            return layer_range
        self.read_layers(index, [buffer])
        return None

    @cached_property
    def _layer_ranges(self) -> list[ByteRange]:
        path = str(self._source.local)
        return [byte_range(path, self._header, layer_name(i), self._checksums) for i in range(self._layout.layers)]

    @cached_property
    def scales(self) -> tuple[Tensor, Tensor]:
        """Scales of the keys and of the values of all layers, in a quantised format (see `ragkv.store.quantize`)."""
        return self.read("key_scales"), self.read("value_scales")

    def surprisal(self) -> Tensor:
        """-log p of each token given the tokens before it in the segment, ``(tokens,)``; 0 for the first."""
        return self.read("surprisal")

    def _damaged(self, reason: str) -> StoreError:
        return StoreError(
            f"the store's file {self.path} is damaged ({reason}); it was not used. Run precompute again on the same "
            "prompts: it checks every file and rewrites damaged ones"
        )


class PackedSegment:
    """A quantised segment, read as it is stored and unpacked on the GPU (`ragkv.kernels.unpacking`).

    Attributes
    ----------
    layer_bytes
        The size of a layer: its codes, then the scales of its keys, then those of its values.
    """

    def __init__(self, stored: StoredSegment):
        self._stored = stored
        self._codes, self._key_scales, self._value_scales = sizes = packed_sizes(stored.shape, stored.format)
        self.layer_bytes = sum(sizes)

    def read_layers(self, first: int, buffers: Sequence[memoryview]) -> None:
        """Read consecutive layers into buffers of `layer_bytes` each."""
        layers = range(first, first + len(buffers))
        self._stored.read_into([layer_name(i) for i in layers], [buffer[: self._codes] for buffer in buffers])
        for index, buffer in zip(layers, buffers, strict=True):
            self._copy_scales(index, buffer)

    def delegate(self, index: int, buffer: memoryview) -> ByteRange | None:
        """Leave the codes to a worker, if one can read them. See `LayerSource.delegate`."""
        if layer_range := self._stored.layer_range(index):
            self._copy_scales(index, buffer)
        else:
            self.read_layers(index, [buffer])
        return layer_range

    def _copy_scales(self, index: int, buffer: memoryview) -> None:
        keys, values = self._scales
        values_start = self._codes + self._key_scales
        buffer[self._codes : values_start] = keys[index * self._key_scales :][: self._key_scales]
        buffer[values_start:] = values[index * self._value_scales :][: self._value_scales]

    @cached_property
    def _scales(self) -> tuple[memoryview, memoryview]:
        """Scales of the keys and of the values, layer by layer."""
        keys, values = self._stored.scales
        return as_bytes(keys), as_bytes(values)
