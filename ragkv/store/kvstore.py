"""KVStore: segments' keys and values by content.

A file's name is the hash of all that determines its values: model, dtype, context and token ids. So prompts that
share a chunk share its file, and a changed model never meets old values. Files appear whole or not at all, and
whatever is read is checked: shape, dtype, metadata and the checksum of every tensor used.
"""

import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial

from torch import Tensor

from ragkv.prompt import Segment
from ragkv.store.cache import Cache
from ragkv.store.files import Folder, ReadOnlyError, StoreError
from ragkv.store.layout import Layout, layer_name
from ragkv.store.leases import Leases
from ragkv.store.manifests import Manifests
from ragkv.store.quantize import CODECS, check_format, quantize
from ragkv.store.segment_file import KEY, BytesSource, encode, key_of, read_header
from ragkv.store.stored_segment import FileSource, StoredSegment

KNOWN = 512  # local files, the ones used last, whose headers stay in memory


class KVStore:
    """Keys (before rotary embedding), values and surprisal of segments.

    Parameters
    ----------
    url
        A folder, or any fsspec URL (``"memory://kv"``, ``"s3://bucket/kv"``).
    format
        How keys and values are stored: ``"model"`` (as computed), ``"fp8"``, ``"int8"`` or ``"int4"``, see
        `ragkv.store.quantize`. Segments of different formats stand side by side.
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
        self._named, self._known = lru_cache(KNOWN)(_named), lru_cache(KNOWN)(self._in_folder)
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
        identity, key = self._named(layout, segment)
        data = encode(identity, tensors)
        self.folder.write(segment_name(key), data)
        if self.cache:
            self.cache.put(key, data)
        return len(data)

    def open(self, layout: Layout, segment: Segment) -> StoredSegment:
        """The stored segment, its header checked; not again while its local file is the same.

        Raises
        ------
        KeyError
            The segment is not in the store.
        StoreError
            Its file is damaged or cannot be read.
        """
        identity, key = self._named(layout, segment)
        if not (self.cache or self.folder.objects):
            with _missing_is_key_error():
                stamp = self.folder.stamp(segment_name(key))
                return (self._known if stamp else self._in_folder)(layout, segment, stamp)
        found = partial(StoredSegment, self.path(key), layout, segment, identity)
        if self.cache and (copy := self.cache.get(key)):
            return found(BytesSource(copy))
        data = self._fetch(key)
        opened = found(BytesSource(data))
        if self.cache:
            opened.check()  # no damage is kept
            self.cache.put(key, data)
        return opened

    def _in_folder(self, layout: Layout, segment: Segment, stamp: object) -> StoredSegment:
        """A segment whose file, with this stamp, is read part by part."""
        identity, key = self._named(layout, segment)
        source = FileSource(self.folder, segment_name(key))
        return StoredSegment(self.path(key), layout, segment, identity, source)

    def check(self, layout: Layout, segment: Segment) -> bool:
        """Whether the segment is stored, there and not only in a cache, and every bit of it is as written.

        Raises
        ------
        StoreError
            The store cannot be read.
        """
        identity, key = self._named(layout, segment)
        try:
            data = self._fetch(key)
        except KeyError:
            return False
        try:
            StoredSegment(self.path(key), layout, segment, identity, BytesSource(data)).check()
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
            first = FileSource(self.folder, segment_name(self.keys()[0]))
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


def _named(layout: Layout, segment: Segment) -> tuple[dict, str]:
    """What determines a segment's values, and the key made from it."""
    identity = layout.identity(segment)
    return identity, key_of(identity)


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
