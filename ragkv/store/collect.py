"""Garbage collection: the least recently used segments leave a store, except those that a running job holds."""

from dataclasses import dataclass

from ragkv.store.files import is_abandoned
from ragkv.store.inventory import Inventory, map_in_threads
from ragkv.store.kvstore import KVStore


@dataclass(frozen=True)
class Collected:
    """What `collect` did, or would do.

    Attributes
    ----------
    evicted
        The keys of the removed segments.
    freed, bytes
        The size of the removed segments, and of those that remain.
    held
        How many segments running jobs hold.
    leftovers
        How many unfinished files of killed jobs were removed.
    """

    evicted: list[str]
    freed: int
    bytes: int
    held: int
    leftovers: int


def collect(store: KVStore, budget: int, *, dry_run: bool = False, progress: bool = False) -> Collected:
    """Evict the least recently used segments until the rest takes at most `budget` bytes.

    Only segments and what killed jobs left behind are ever removed: unfinished files of the store that are an hour
    old, leases that ran out, and segments that a killed eviction had set aside. Nothing is written, so that this works
    on a full disk. `ragkv.store.segments` explains why no held segment is lost.

    Raises
    ------
    ValueError
        The budget is negative.
    StoreError
        The store cannot be listed or changed, or a hold cannot be read.
    """
    if budget < 0:
        raise ValueError(f"a budget of {budget} bytes: give 0 or more")
    inventory = Inventory.of(store)
    held = _held(store)
    victims = _victims(store, inventory, held, budget)
    abandoned = list(filter(is_abandoned, inventory.leftovers))
    if dry_run:
        evicted = {key: inventory.segments[key].size for key in victims}
    else:  # what frees space without moving anything comes first
        for entry in abandoned:
            store.folder.remove(entry.name)
        evicted = _evict(store, inventory, victims, progress)
        store.holds.sweep()
    freed = sum(evicted.values())
    remaining = inventory.bytes - sum(inventory.segments[key].size for key in evicted.keys() & set(victims))
    return Collected(list(evicted), freed, remaining, len(held & inventory.segments.keys()), len(abandoned))


def _victims(store: KVStore, inventory: Inventory, held: set[str], budget: int) -> list[str]:
    """The segments to evict, the least recently used first."""
    used = inventory.last_used(store)
    excess = inventory.bytes - budget
    victims = []
    for key in sorted(inventory.segments.keys() - held, key=lambda key: (used[key], key)):
        if excess <= 0:
            break
        victims.append(key)
        excess -= inventory.segments[key].size
    return victims


def _evict(store: KVStore, inventory: Inventory, victims: list[str], progress: bool) -> dict[str, int]:
    """Evict these segments, and those that a killed eviction had set aside; return the sizes of those removed."""
    files = store.segments
    removed_at_once = map_in_threads(files.set_aside, victims, "set aside", progress=progress)
    sizes = {key: inventory.segments[key].size for key, done in zip(victims, removed_at_once, strict=True) if done}
    held = _held(store)  # once more: jobs that take their holds from now on move back what they need by themselves
    aside = files.list_aside()
    for key in aside.keys() & held:
        files.move_back(key)
    unheld = [key for key in dict.fromkeys([*victims, *aside]) if key in aside and key not in held]
    removed = map_in_threads(files.remove_aside, unheld, "evict", progress=progress)
    return sizes | {key: aside[key].size for key, done in zip(unheld, removed, strict=True) if done}


def _held(store: KVStore) -> set[str]:
    return {key for lease in store.holds.standing() for key in lease.keys}
