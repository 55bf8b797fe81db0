"""Is every file of a store as it was written? Without the model that wrote it, at the disk's speed."""

from dataclasses import dataclass
from time import perf_counter

from ragkv.store.files import StoreError
from ragkv.store.inventory import Inventory, side_by_side
from ragkv.store.kvstore import KVStore, segment_name
from ragkv.store.segment_file import check_file


@dataclass(frozen=True)
class Verified:
    """What `verify` found.

    Attributes
    ----------
    segments, bytes, seconds
        What was read, and how long it took.
    damaged
        What is wrong with a file, by its segment's key.
    missing
        Segments that manifests name and the store does not have, by manifest.
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
        """Whether every file is as it was written."""
        return not self.damaged


def verify(store: KVStore, *, progress: bool = False) -> Verified:
    """Read every segment and check every bit; nothing is changed.

    Raises
    ------
    StoreError
        The store cannot be listed, or a manifest is damaged.
    """
    start, found = perf_counter(), Inventory.of(store)
    problems = side_by_side(lambda key: problem(store, key), found.segments, "verify", progress=progress)
    damaged = {key: what for key, what in zip(found.segments, problems, strict=True) if what}
    seconds = perf_counter() - start
    missing = {}
    for name in store.manifests.names():
        if lacking := len(store.manifests.read(name).references.keys() - found.segments.keys()):
            missing[name] = lacking
    return Verified(len(found.segments), found.bytes, seconds, damaged, missing, len(found.leftovers))


def problem(store: KVStore, key: str) -> str | None:
    """What is wrong with a segment's file, all of it read; None if nothing is."""
    try:
        check_file(key, store.folder.read(segment_name(key)))
    except FileNotFoundError:  # evicted since it was listed
        return None
    except (StoreError, ValueError, LookupError, TypeError, AttributeError) as error:
        return str(error)
    return None
