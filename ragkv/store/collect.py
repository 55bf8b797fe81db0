"""Making room: segments that were not used for longest leave a store, but for those that a running job holds."""

import time
from dataclasses import dataclass

from tqdm import tqdm

from ragkv.store.inventory import Inventory
from ragkv.store.kvstore import KVStore, segment_name

LEFTOVER_AGE = 3600.0  # seconds; no write takes so long


@dataclass(frozen=True)
class Collected:
    """What `collect` did, or would do.

    Attributes
    ----------
    evicted
        Keys of the segments removed, the one not used for longest first.
    freed, bytes
        Their bytes, and what the store's segments take now.
    held
        Segments that stayed because a running job holds them.
    leftovers
        Unfinished files of killed jobs, removed too.
    """

    evicted: list[str]
    freed: int
    bytes: int
    held: int
    leftovers: int


def collect(store: KVStore, budget: int, *, dry_run: bool = False, progress: bool = False) -> Collected:
    """Evict least recently used segments until the rest takes at most `budget` bytes.

    Only segments and what killed jobs left behind are ever removed: unfinished files of this store's own names that are
    an hour old, and leases that ran out. A job that takes its hold while this runs is either seen here or waits until
    this is done.

    Raises
    ------
    ValueError
        The budget is negative.
    StoreError
        The store cannot be listed or written to, or a hold cannot be read.
    """
    if budget < 0:
        raise ValueError(f"a budget of {budget} bytes: give 0 or more")
    found = Inventory.of(store)
    held = _held(store)
    used, over, victims = found.last_used(store), found.bytes - budget, []
    for key in sorted(found.segments.keys() - held, key=lambda key: (used[key], key)):
        if over <= 0:
            break
        victims.append(key)
        over -= found.segments[key].size
    old = [entry for entry in found.leftovers if entry.modified < time.time() - LEFTOVER_AGE]
    if not dry_run:
        with store.evictions.take(victims, "eviction"):
            held = _held(store)  # once more: who holds from now on has seen what is being evicted
            victims = [key for key in victims if key not in held]
            for key in tqdm(victims, "evict", unit="segment", disable=not progress):
                store.folder.remove(segment_name(key))
        for entry in old:
            store.folder.remove(entry.name)
        for leases in (store.holds, store.evictions):
            leases.sweep()
    freed = sum(found.segments[key].size for key in victims)
    return Collected(victims, freed, found.bytes - freed, len(held & found.segments.keys()), len(old))


def _held(store: KVStore) -> set[str]:
    return {key for lease in store.holds.standing() for key in lease.keys}
