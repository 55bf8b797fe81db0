"""What lies in a store: its segments, who needs them, and what sharing them saves."""

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import pandas as pd
from tqdm import tqdm

from ragkv.store.files import Entry, Folder, StoreError
from ragkv.store.kvstore import KVStore, segment_key, segment_name
from ragkv.store.segment_file import read_header
from ragkv.store.stored_segment import SegmentInFolder

_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")
One = TypeVar("One")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Inventory:
    """A store's files, from one listing.

    Attributes
    ----------
    segments
        Each segment's file by its key.
    leftovers
        Files that killed jobs did not finish; no one reads them.
    """

    segments: dict[str, Entry]
    leftovers: list[Entry]

    @classmethod
    def of(cls, store: KVStore) -> "Inventory":
        entries = store.folder.list()
        segments = {key: entry for entry in entries if (key := segment_key(entry.name))}
        partial = [e for e in entries if e.name.endswith(".partial") and segment_key(_PARTIAL.sub("", e.name))]
        return cls(segments, partial)

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.segments.values())

    def last_used(self, store: KVStore) -> dict[str, float]:
        """When each segment was last written, or a job began that needs it by a manifest (seconds)."""
        used = store.manifests.last_used()
        return {key: max(entry.modified, used.get(key, 0.0)) for key, entry in self.segments.items()}


def list_segments(store: KVStore, *, progress: bool = False) -> pd.DataFrame:
    """A row per segment, the last used first.

    Returns
    -------
    DataFrame
        ``key, tokens, bytes, stored_as, dtype, model, last_use, held``; a damaged file has no tokens, format and
        model, ``last_use`` is in UTC, ``held`` says whether a running job needs it.
    """
    found = Inventory.of(store)
    held = {key for lease in store.holds.standing() for key in lease.keys}
    headers = side_by_side(lambda key: _described(store.folder, key), found.segments, "headers", progress=progress)
    used = found.last_used(store)
    rows = [
        {"key": key, "tokens": None, "bytes": entry.size, "stored_as": None, "dtype": None, "model": None}
        | header
        | {"last_use": used[key], "held": key in held}
        for (key, entry), header in zip(found.segments.items(), headers, strict=True)
    ]
    columns = ["key", "tokens", "bytes", "stored_as", "dtype", "model", "last_use", "held"]
    table = pd.DataFrame(rows, columns=columns)
    table["last_use"] = pd.to_datetime(table["last_use"].astype(float), unit="s", utc=True)
    return table.sort_values(["last_use", "key"], ascending=[False, True])


def _described(folder: Folder, key: str) -> dict:
    try:
        header = read_header(SegmentInFolder(folder, segment_name(key)))
        told = {name: header.identity[name] for name in ("stored_as", "dtype", "model")}
        return {"tokens": header.tensors["surprisal"].shape[0]} | told
    except (OSError, StoreError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def sharing(store: KVStore) -> pd.DataFrame:
    """What each manifest's prompts need, and what it saves that they share segments.

    Returns
    -------
    DataFrame
        ``manifest, tasks, references, segments, stored, bytes, saved``: segments that prompts refer to, each time they
        do, how many distinct ones these are and how many of them are stored, their bytes, and the bytes that the
        further references would take.
    """
    sizes = {key: entry.size for key, entry in Inventory.of(store).segments.items()}
    rows = []
    for name in store.manifests.names():
        manifest = store.manifests.read(name)
        references = manifest.references
        stored = {key: sizes[key] for key in references if key in sizes}
        rows.append(
            {"manifest": name, "tasks": len(manifest.tasks), "references": references.total()}
            | {"segments": len(references), "stored": len(stored), "bytes": sum(stored.values())}
            | {"saved": sum((references[key] - 1) * size for key, size in stored.items())}
        )
    return pd.DataFrame(rows, columns=["manifest", "tasks", "references", "segments", "stored", "bytes", "saved"])


def side_by_side(
    function: Callable[[One], Result], of: Iterable[One], what: str, *, progress: bool, threads: int = 8
) -> list[Result]:
    """The function of each, in threads: they wait for files, or read and hash, which Python does side by side."""
    items = list(of)
    with ThreadPoolExecutor(threads) as pool:
        return list(tqdm(pool.map(function, items), what, total=len(items), disable=not progress))
