"""Verify that every file of a store is as it was written; this runs at the disk's speed and needs no model."""

from dataclasses import dataclass
from time import perf_counter

from ragkv.store.errors import StoreError, WrongKeyError
from ragkv.store.inventory import Inventory, map_in_threads
from ragkv.store.kvstore import KVStore
from ragkv.store.segment_file import check_file
from ragkv.store.segments import segment_name


@dataclass(frozen=True)
class Verified:
    """The result of `verify`.

    Attributes
    ----------
    segments, bytes, seconds
        What was read, and how long it took.
    damaged
        The keys of damaged segments, with what is wrong with their files.
    missing
        By manifest, the number of segments that it names and the store does not have.
    leftovers
        Unfinished files of killed jobs, which do no harm.
    """

    segments: int
    bytes: int
    seconds: float
    damaged: dict[str, str]
    missing: dict[str, int]
    leftovers: int

    @property
    def whole(self) -> bool:
        """Whether no file is damaged."""
        return not self.damaged


def verify(store: KVStore, *, progress: bool = False) -> Verified:
    """Read every segment and check every bit; nothing is changed.

    Raises
    ------
    StoreError
        The store cannot be listed, a manifest is damaged, or segments were written with another key.
    """
    start = perf_counter()
    inventory = Inventory.of(store)
    problems = map_in_threads(lambda key: _damage(store, key), inventory.segments, "verify", progress=progress)
    damaged = {key: reason for key, reason in zip(inventory.segments, problems, strict=True) if reason}
    seconds = perf_counter() - start
    missing = {}
    for name in store.manifests.names():
        references = store.manifests.read(name).references
        if count := len(references.keys() - inventory.segments.keys()):
            missing[name] = count
    leftovers = len(inventory.leftovers)
    return Verified(len(inventory.segments), inventory.bytes, seconds, damaged, missing, leftovers)


def problem(store: KVStore, key: str) -> str | None:
    """Read a segment's file and return what is wrong with it, or None if it is intact or no longer there."""
    try:
        return _damage(store, key)
    except WrongKeyError as error:
        return str(error)


def _damage(store: KVStore, key: str) -> str | None:
    """As `problem`, but that the file was written with another key is an error: it may be intact."""
    try:
        check_file(key, store.folder.read(segment_name(key)), store.checksums)
    except FileNotFoundError:  # evicted since it was listed
        return None
    except WrongKeyError:
        raise
    except (StoreError, ValueError) as error:
        return str(error)
    return None
