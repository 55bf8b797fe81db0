"""KVStore: segments' keys and values by content, one safetensors file each, on any fsspec file system.

A file's name is the hash of all that determines its values: model, dtype, context and token ids. So prompts that
share a chunk share its file, and a changed model never meets old values. Files appear whole or not at all, and
whatever is read is checked: shape, dtype, metadata and the checksum of every tensor used.
"""

import errno
import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from uuid import uuid4

import fsspec
import safetensors.torch
import torch
import xxhash
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor
from transformers import PreTrainedModel

from ragkv.models import fingerprint
from ragkv.prompt import Segment
from ragkv.quantize import CODECS, check_format, dequantize, quantize

FORMAT = 2
_DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}


class StoreError(RuntimeError):
    """The store cannot give or take a segment; the message says which, and what to do."""


@dataclass(frozen=True)
class Layout:
    """What a model's segments look like: its fingerprint, the layers' shape and dtype, and how they are stored."""

    model: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    format: str = "model"

    @classmethod
    def of(cls, model: PreTrainedModel, format: str = "model") -> "Layout":
        """The layout of a model's segments in a store of that format (see `ragkv.quantize`).

        Raises
        ------
        ValueError
            No such format, or the model's heads do not fit it.
        """
        config, head_dim = model.config, model.model.layers[0].self_attn.head_dim
        check_format(format, head_dim)
        shape = config.num_hidden_layers, config.num_key_value_heads, head_dim
        return cls(fingerprint(model), *shape, model.dtype, format)

    def key(self, segment: Segment) -> str:
        """The segment's name in the store."""
        return _hash([FORMAT, self.model, _DTYPES[self.dtype], self.format, segment.context, segment.ids])

    def tensors(self, segment: Segment) -> dict[str, tuple[str, list[int]]]:
        """Dtype and shape of every tensor of the segment's file."""
        tokens, codec = len(segment.ids), CODECS.get(self.format)
        dtype, packed = (codec.codes, codec.packed) if codec else (self.dtype, 1)
        shape = [2, self.kv_heads, tokens, self.head_dim // packed]
        names = {"surprisal": ("F32", [tokens])}
        names |= {_layer(i): (_DTYPES[dtype], shape) for i in range(self.layers)}
        if codec:
            names["key_scales"] = ("I8", [self.layers, self.kv_heads, self.head_dim])
            names["value_scales"] = ("I8", [self.layers, self.kv_heads, tokens])
        return names

    def metadata(self, segment: Segment) -> dict:
        return {
            "format": FORMAT,
            "model": self.model,
            "stored_as": self.format,
            "context": _hash(segment.context),
            "ids": _hash(segment.ids),
        }


def _layer(index: int) -> str:
    return f"layer.{index:03d}"


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


class KVStore:
    """Keys (before rotary embedding), values and surprisal of segments.

    Parameters
    ----------
    url
        A folder, or any fsspec URL (``"memory://kv"``, ``"s3://bucket/kv"``).
    format
        How keys and values are stored: ``"model"`` (as computed), ``"fp8"``, ``"int8"`` or ``"int4"``, see
        `ragkv.quantize`. Segments of different formats stand side by side.

    Raises
    ------
    ValueError
        No such format.
    """

    def __init__(self, url: str, *, format: str = "model", **storage_options: object):
        check_format(format)
        self.url, self.format = str(url), format
        self._files, self._root = fsspec.core.url_to_fs(self.url, **storage_options)

    def path(self, key: str) -> str:
        """Where the segment with that key lies."""
        return f"{self._root}/{key[:2]}/{key}.safetensors"

    def keys(self) -> list[str]:
        """The keys of all stored segments, sorted."""
        found = self._files.glob(f"{self._root}/*/*.safetensors")
        return sorted(path.rsplit("/", 1)[-1].removesuffix(".safetensors") for path in found)

    def write(self, layout: Layout, segment: Segment, layers: Tensor, surprisal: Tensor) -> int:
        """Store a segment and return the file's size in bytes.

        Parameters
        ----------
        layers
            Keys and values, ``(layers, 2, kv_heads, tokens, head_dim)``.
        surprisal
            ``(tokens,)`` in float32.

        Raises
        ------
        StoreError
            The folder is read-only or the disk full; what was stored before stays.
        ValueError
            Keys or values that cannot be stored in the layout's format.
        """
        tensors, stored = {}, layers.cpu().contiguous()
        if layout.format in CODECS:
            stored, tensors["key_scales"], tensors["value_scales"] = quantize(stored, layout.format)
        tensors |= {_layer(i): layer for i, layer in enumerate(stored.unbind())}
        tensors["surprisal"] = surprisal.float().cpu().contiguous()
        checksums = {name: _checksum(_bytes(tensor)) for name, tensor in tensors.items()}
        metadata = layout.metadata(segment) | {"checksums": dict(sorted(checksums.items()))}
        data = safetensors.torch.save(tensors, {"ragkv": json.dumps(metadata)})
        path = self.path(layout.key(segment))
        partial = f"{path}.{uuid4().hex}.partial"
        try:
            self._files.makedirs(self._files._parent(path), exist_ok=True)
            self._files.pipe_file(partial, data)
            self._files.mv(partial, path)
        except OSError as error:
            self._discard(partial)
            reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
            raise StoreError(
                f"cannot write to the store {self.url!r}: {reason}. What was stored before is unharmed: "
                "make room or choose a folder that can be written to, and run precompute again"
            ) from error
        return len(data)

    def _discard(self, path: str) -> None:
        with suppress(OSError):  # it was never made, or cannot be removed either
            self._files.rm_file(path)

    def open(self, layout: Layout, segment: Segment) -> "StoredSegment":
        """The stored segment, its header checked.

        Raises
        ------
        KeyError
            The segment is not in the store.
        StoreError
            Its file is damaged.
        """
        return StoredSegment(self, layout, segment)

    def check(self, layout: Layout, segment: Segment) -> bool:
        """Whether the segment is stored and every bit of it is as written."""
        try:
            stored = self.open(layout, segment)
            for name in layout.tensors(segment):
                stored.read(name)
        except (KeyError, StoreError):
            return False
        return True

    def size(self, layout: Layout, segment: Segment) -> int:
        """Bytes of the segment's file."""
        return self._files.size(self.path(layout.key(segment)))

    def missing(self, layout: Layout, segments: list[Segment]) -> list[Segment]:
        """Those of `segments` that have no file."""
        return [segment for segment in segments if not self._files.exists(self.path(layout.key(segment)))]

    def other_model(self, layout: Layout) -> str | None:
        """The fingerprint of a model that wrote to this store, if the first file found is another one's."""
        with suppress(OSError, ValueError, LookupError, TypeError):  # a damaged file tells nothing
            header, _ = _read_header(self._files, self.path(self.keys()[0]))
            written_by = json.loads(header["__metadata__"]["ragkv"])["model"]
            return written_by if written_by != layout.model else None
        return None


class StoredSegment:
    """A segment's file: each tensor is read on its own and checked against its checksum."""

    def __init__(self, store: KVStore, layout: Layout, segment: Segment):
        self.path = store.path(layout.key(segment))
        self._files, self._layout = store._files, layout
        try:
            header, self._start = _read_header(self._files, self.path)
            metadata = json.loads(header.pop("__metadata__")["ragkv"])
            self._checksums = metadata.pop("checksums")
            expected = layout.tensors(segment)
            found = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}
            self._entries = {name: header[name]["data_offsets"] for name in expected}
            if found != expected or metadata != layout.metadata(segment):
                raise ValueError("its header is not what this model and chunk need")
            if self._files.size(self.path) != self._start + max(stop for _, stop in self._entries.values()):
                raise ValueError("it is cut short or too long")
        except FileNotFoundError as error:
            raise KeyError(self.path) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(str(error)) from error
        self._expected = expected

    def read(self, name: str, *, pinned: bool = False) -> Tensor:
        """One tensor of the file, checked."""
        (start, stop), (dtype, shape) = self._entries[name], self._expected[name]
        tensor = torch.empty(shape, dtype=_BY_NAME[dtype], pin_memory=pinned)
        data = _bytes(tensor)
        whole = stop - start == len(data) and _read_into(data, self._files, self.path, self._start + start)
        if not whole or _checksum(data) != self._checksums.get(name):
            raise self._damaged(f"{name} does not match its checksum")
        return tensor

    def layer(self, index: int, *, pinned: bool = False) -> Tensor:
        """Keys before rotation and values of one layer, ``(2, kv_heads, tokens, head_dim)``.

        In `pinned` memory their copy to a GPU overlaps with computing.
        """
        plain = self._layout.format not in CODECS
        stored = self.read(_layer(index), pinned=pinned and plain)
        if plain:
            return stored
        key_scales, value_scales = self._scales
        exact = dequantize(stored, key_scales[index], value_scales[index], self._layout.format, self._layout.dtype)
        return exact.pin_memory() if pinned else exact

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


def _read_header(files: fsspec.AbstractFileSystem, path: str) -> tuple[dict, int]:
    """A safetensors file's header, and where its data begin."""
    size = int.from_bytes(files.cat_file(path, start=0, end=8), "little")
    if size > 100_000_000:  # the format's own limit
        raise ValueError("its header's length makes no sense")
    return json.loads(files.cat_file(path, start=8, end=8 + size)), 8 + size


def _read_into(data: memoryview, files: fsspec.AbstractFileSystem, path: str, at: int) -> bool:
    """Fill `data` with a file's bytes from `at` on; False if there are too few. A local file's are copied only once."""
    if not isinstance(files, LocalFileSystem):
        found = files.cat_file(path, start=at, end=at + len(data))
        data[: len(found)] = found
        return len(found) == len(data)
    read = 0
    with open(path, "rb", buffering=0) as file:
        file.seek(at)
        while more := file.readinto(data[read:]):
            read += more
    return read == len(data)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


def _checksum(data: bytes | memoryview) -> str:
    return xxhash.xxh3_128_hexdigest(data)
