"""KVStore: segments' keys and values by content.

A file's name is the hash of all that determines its values: model, dtype, context and token ids. So prompts that
share a chunk share its file, and a changed model never meets old values. Files appear whole or not at all, and
whatever is read is checked: shape, dtype, metadata and the checksum of every tensor used.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property

import torch
from torch import Tensor

from ragkv.prompt import Segment
from ragkv.quantize import CODECS, check_format, dequantize, quantize
from ragkv.store.cache import Cache
from ragkv.store.files import Folder, ReadOnlyError, StoreError
from ragkv.store.layout import Layout, layer_name
from ragkv.store.leases import Leases
from ragkv.store.manifests import Manifests
from ragkv.store.segment_file import BY_NAME, KEY, InMemory, Source, encode, read_header, read_into


class KVStore:
    """Keys (before rotary embedding), values and surprisal of segments.

    Parameters
    ----------
    url
        A folder, or any fsspec URL (``"memory://kv"``, ``"s3://bucket/kv"``).
    format
        How keys and values are stored: ``"model"`` (as computed), ``"fp8"``, ``"int8"`` or ``"int4"``, see
        `ragkv.quantize`. Segments of different formats stand side by side.
    cache
        A local folder in front of a remote store, that segments are read from once they were fetched.

    Attributes
    ----------
    manifests
        Which segments profiles need.
    holds, evictions
        The leases of running jobs, and of evictions going on.

    Raises
    ------
    ValueError
        No such format.
    """

    def __init__(self, url: str, *, format: str = "model", cache: Cache | None = None, **storage_options: object):
        check_format(format)
        self.url, self.format, self.cache = str(url), format, cache
        self.folder = Folder(self.url, **storage_options)
        self.manifests = Manifests(self.folder)
        self.holds, self.evictions = Leases(self.folder, "holds", 600), Leases(self.folder, "evictions", 60)

    def path(self, key: str) -> str:
        """Where the segment with that key lies."""
        return self.folder.path(segment_name(key))

    def keys(self) -> list[str]:
        """The keys of all stored segments, sorted."""
        return sorted(key for entry in self.folder.list() if (key := segment_key(entry.name)))

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
        tensors |= {layer_name(i): layer for i, layer in enumerate(stored.unbind())}
        tensors["surprisal"] = surprisal.float().cpu().contiguous()
        key, data = layout.key(segment), encode(layout.identity(segment), tensors)
        self.folder.write(segment_name(key), data)
        if self.cache:
            self.cache.put(key, data)
        return len(data)

    def open(self, layout: Layout, segment: Segment) -> "StoredSegment":
        """The stored segment, its header checked.

        Raises
        ------
        KeyError
            The segment is not in the store.
        StoreError
            Its file is damaged or cannot be read.
        """
        key = layout.key(segment)
        if self.cache and (copy := self.cache.get(key)):
            return StoredSegment(self.path(key), InMemory(copy), layout, segment)
        if not (self.cache or self.folder.objects):
            with _missing_is_key_error():
                return StoredSegment(self.path(key), SegmentInFolder(self.folder, segment_name(key)), layout, segment)
        data = self._fetch(key)
        opened = StoredSegment(self.path(key), InMemory(data), layout, segment)
        if self.cache:
            opened.check()  # no damage is kept
            self.cache.put(key, data)
        return opened

    def check(self, layout: Layout, segment: Segment) -> bool:
        """Whether the segment is stored, there and not only in a cache, and every bit of it is as written.

        Raises
        ------
        StoreError
            The store cannot be read.
        """
        key = layout.key(segment)
        try:
            data = self._fetch(key)
        except KeyError:
            return False
        try:
            StoredSegment(self.path(key), InMemory(data), layout, segment).check()
        except StoreError:
            return False
        return True

    def _fetch(self, key: str) -> bytes:
        with _missing_is_key_error():
            return self.folder.read(segment_name(key))

    def size(self, layout: Layout, segment: Segment) -> int:
        """Bytes of the segment's file.

        Raises
        ------
        StoreError
            It is not there, or cannot be read.
        """
        key = layout.key(segment)
        try:
            return self.folder.size(segment_name(key))
        except FileNotFoundError as error:
            raise StoreError(f"{self.path(key)} is not in the store: run precompute on the same prompts") from error

    def missing(self, layout: Layout, segments: list[Segment]) -> list[Segment]:
        """Those of `segments` that have no file."""
        return [segment for segment in segments if not self.folder.exists(segment_name(layout.key(segment)))]

    def other_model(self, layout: Layout) -> str | None:
        """The fingerprint of a model that wrote to this store, if the first file found is another one's."""
        with suppress(OSError, StoreError, ValueError, LookupError, TypeError, AttributeError):  # damage tells nothing
            first = SegmentInFolder(self.folder, segment_name(self.keys()[0]))
            written_by = read_header(first).identity["model"]
            return written_by if written_by != layout.model else None
        return None

    @contextmanager
    def hold(self, keys: Collection[str], job: str) -> Iterator[None]:
        """Meanwhile no eviction removes these segments; a store that cannot be written to is not held.

        Raises
        ------
        StoreError
            The disk is full, or the store cannot be reached.
        """
        wanted = frozenset(keys)
        with ExitStack() as held:
            with suppress(ReadOnlyError):
                held.enter_context(self.holds.take(wanted, job))
                while any(eviction.keys & wanted for eviction in self.evictions.standing()):
                    time.sleep(0.1)  # it began before this lease stood
            yield


class StoredSegment:
    """A segment's file: each tensor is read on its own and checked against its checksum."""

    def __init__(self, path: str, source: Source, layout: Layout, segment: Segment):
        self.path, self._source, self._layout = path, source, layout
        try:
            self._header = read_header(source)
            self._expected = layout.tensors(segment)
            found = {name: (entry.dtype, entry.shape) for name, entry in self._header.tensors.items()}
            if found != self._expected or self._header.identity != layout.identity(segment):
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


class SegmentInFolder:
    """A segment's file that is read part by part."""

    def __init__(self, folder: Folder, name: str):
        self._folder, self._name, self.size = folder, name, folder.size(name)

    def read(self, start: int, stop: int) -> bytes:
        return self._folder.read(self._name, start, min(stop, self.size))

    def read_into(self, start: int, rooms: Sequence[memoryview]) -> int:
        return self._folder.read_into(self._name, start, rooms)


def segment_name(key: str) -> str:
    """Where a segment lies in its store.

    Raises
    ------
    ValueError
        This is no segment's key.
    """
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no segment's key: these are 64 hexadecimal digits")
    return f"{key[:2]}/{key}.safetensors"


def segment_key(name: str) -> str | None:
    """The key of the segment that lies there; None for what is no segment."""
    key = name.rpartition("/")[2].removesuffix(".safetensors")
    return key if KEY.fullmatch(key) and name == segment_name(key) else None


@contextmanager
def _missing_is_key_error() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise KeyError(str(error)) from error
