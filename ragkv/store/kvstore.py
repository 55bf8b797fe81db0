"""KVStore: keys and values of segments, stored by content.

A file's name is the hash of everything that determines its values: model, dtype, format, context and token ids. So
prompts that share a chunk share its file, and a changed model never meets old values. Files appear complete or not at
all, and whatever is read is verified: header, shapes, dtypes and the checksum of every tensor used.
"""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache

from torch import Tensor

from ragkv.prompt import Segment
from ragkv.store.cache import Cache
from ragkv.store.checksums import Checksums
from ragkv.store.errors import ReadOnlyError, StoreError, WrongKeyError
from ragkv.store.files import Folder
from ragkv.store.layout import Layout, layer_name
from ragkv.store.leases import Leases
from ragkv.store.manifests import Manifests
from ragkv.store.quantize import CODECS, check_format, quantize
from ragkv.store.segment_file import BytesSource, Source, encode, key_of, read_header
from ragkv.store.segments import FileSource, SegmentFiles
from ragkv.store.stored_segment import StoredSegment

HEADERS_KEPT = 512  # of local files, the most recently used
HOLD_SECONDS = 300.0


class KVStore:
    """Keys (before rotary embedding), values and surprisal of segments.

    Parameters
    ----------
    url
        A folder, or any fsspec URL (``"memory://kv"``, ``"s3://bucket/kv"``).
    format
        How keys and values are stored: ``"model"`` (as computed), ``"fp8"``, ``"int8"`` or ``"int4"``, see
        `ragkv.store.quantize`. Segments in different formats can share a store.
    cache
        A local folder in front of a remote store: a segment that was fetched once is then read from there.
    storage_options
        Passed on to fsspec.

    Attributes
    ----------
    manifests
        Which segments profiles need.
    holds
        Which segments running jobs need.
    checksums
        With the key in the environment variable ``RAGKV_STORE_KEY``, if that is set.

    Raises
    ------
    ValueError
        The format does not exist, the URL names no folder, or the key is too short.
    """

    def __init__(self, url: str, *, format: str = "model", cache: Cache | None = None, **storage_options: object):
        check_format(format)
        self.url = str(url)
        self.format = format
        self.cache = cache
        self.folder = Folder(self.url, **storage_options)
        self.segments = SegmentFiles(self.folder)
        self.manifests = Manifests(self.folder)
        self.holds = Leases(self.folder, "holds", HOLD_SECONDS)
        self.checksums = Checksums.from_environment()
        self._identified = lru_cache(HEADERS_KEPT)(_identified)
        self._opened_before = lru_cache(HEADERS_KEPT)(self._open_file)
        self._key_checked = False

    def path(self, key: str) -> str:
        """The path of the segment with that key."""
        return self.segments.path(key)

    def keys(self) -> list[str]:
        """The keys of all stored segments, sorted."""
        return sorted(self.segments.list())

    def write(self, layout: Layout, segment: Segment, layers: Tensor, surprisal: Tensor) -> int:
        """Store a segment and return the size of its file in bytes.

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
        WrongKeyError
            The store was written with another key, or without one.
        ValueError
            The keys or values cannot be stored in the layout's format.
        """
        self._check_key()
        tensors = {"surprisal": surprisal.float().cpu().contiguous()}
        stored = layers.cpu().contiguous()
        if layout.format in CODECS:
            stored, tensors["key_scales"], tensors["value_scales"] = quantize(stored, layout.format)
        tensors |= {layer_name(i): layer for i, layer in enumerate(stored.unbind())}
        identity, key = self._identified(layout, segment)
        data = encode(identity, tensors, self.checksums)
        self.segments.write(key, data)
        if self.cache:
            self.cache.put(key, data)
        return len(data)

    def open(self, layout: Layout, segment: Segment) -> StoredSegment:
        """Open a stored segment and verify its header. The header of an unchanged local file is read only once.

        Raises
        ------
        KeyError
            The segment is not in the store.
        StoreError
            Its file is damaged, cannot be read, or was written with another key.
        """
        _, key = self._identified(layout, segment)
        if not (self.cache or self.folder.objects):
            with _missing_is_key_error():
                stamp = self.segments.stamp(key)
                open_file = self._opened_before if stamp else self._open_file
                return open_file(layout, segment, stamp)
        if self.cache and (copy := self.cache.get(key, self.checksums)):
            return self._stored(layout, segment, BytesSource(copy))
        data = self._fetch(key)
        opened = self._stored(layout, segment, BytesSource(data))
        if self.cache:
            opened.check()  # damage must not get into the cache
            self.cache.put(key, data)
        return opened

    def _open_file(self, layout: Layout, segment: Segment, stamp: object) -> StoredSegment:
        """A segment whose file, with this stamp, is read range by range."""
        _, key = self._identified(layout, segment)
        return self._stored(layout, segment, FileSource(self.segments, key, self.folder.local))

    def _stored(self, layout: Layout, segment: Segment, source: Source) -> StoredSegment:
        identity, key = self._identified(layout, segment)
        return StoredSegment(self.path(key), layout, segment, identity, source, self.checksums)

    def check(self, layout: Layout, segment: Segment) -> bool:
        """Whether the segment is in the store itself, not only in a cache, and every bit is as it was written.

        Raises
        ------
        StoreError
            The store cannot be read, or the segment was written with another key.
        """
        _, key = self._identified(layout, segment)
        try:
            data = self._fetch(key)
        except KeyError:
            return False
        try:
            self._stored(layout, segment, BytesSource(data)).check()
        except WrongKeyError:
            raise
        except StoreError:
            return False
        return True

    def _fetch(self, key: str) -> bytes:
        with _missing_is_key_error():
            return self.segments.read(key)

    def size(self, layout: Layout, segment: Segment) -> int:
        """The size of the segment's file in bytes.

        Raises
        ------
        StoreError
            The file is not there, or cannot be read.
        """
        key = layout.key(segment)
        try:
            return self.segments.size(key)
        except FileNotFoundError as error:
            raise StoreError(f"{self.path(key)} is not in the store: run precompute on the same prompts") from error

    def missing(self, layout: Layout, segments: list[Segment]) -> list[Segment]:
        """Those of `segments` that have no file."""
        return [segment for segment in segments if not self.segments.exists(layout.key(segment))]

    def other_model(self, layout: Layout) -> str | None:
        """The fingerprint of another model that wrote to this store, if the first segment found is of one."""
        with suppress(OSError, StoreError, ValueError, IndexError):  # a damaged file says nothing
            first = FileSource(self.segments, self.keys()[0], self.folder.local)
            writer = read_header(first).identity["model"]
            return writer if writer != layout.model else None
        return None

    @contextmanager
    def hold(self, keys: Collection[str], job: str) -> Iterator[None]:
        """Keep evictions from removing these segments meanwhile. A store that cannot be written to is not held.

        Raises
        ------
        StoreError
            The disk is full, or the store cannot be reached.
        """
        with ExitStack() as stack:
            with suppress(ReadOnlyError):
                stack.enter_context(self.holds.take(keys, job))
                for key in self.segments.list_aside().keys() & set(keys):
                    self.segments.move_back(key)
            yield

    def _check_key(self) -> None:
        """Check, before the first write, that the store has this key; a store without segments gets it.

        Raises
        ------
        WrongKeyError
            It has another key, or its segments have none.
        """
        if self._key_checked:
            return
        own = self.checksums.key_id
        found = self._key_ids()
        if own and not found and not self.segments.list():
            self.folder.write_json(_key_file(own), {})
            found = self._key_ids()
            if found != {own}:  # another process began to write with another key at the same time
                self.folder.remove(_key_file(own))
        other = next(iter(found - {own}), own if found else None)
        self.checksums.require(other, f"the store {self.url!r}")
        self._key_checked = True

    def _key_ids(self) -> set[str]:
        """The ids of the keys that the store is written with: one at most, unless two writers have just begun."""
        names = (entry.name for entry in self.folder.list("key") if entry.name.endswith(".json"))
        return {name.removeprefix("key/").removesuffix(".json") for name in names}


def _key_file(key_id: str) -> str:
    return f"key/{key_id}.json"


def _identified(layout: Layout, segment: Segment) -> tuple[dict, str]:
    """What determines a segment's values, and the key computed from it."""
    identity = layout.identity(segment)
    return identity, key_of(identity)


@contextmanager
def _missing_is_key_error() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise KeyError(str(error)) from error
