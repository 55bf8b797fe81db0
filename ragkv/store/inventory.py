"""The contents of a store: its segments, who needs them, and what sharing them saves."""

import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tqdm import tqdm

from ragkv.extras import extra
from ragkv.store.errors import StoreError
from ragkv.store.kvstore import KVStore
from ragkv.store.local_files import Entry
from ragkv.store.segment_file import read_header
from ragkv.store.segments import FileSource, segment_key

if TYPE_CHECKING:
    import pandas as pd

_PARTIAL = re.compile(r"(.*)\.[0-9a-f]{32}\.partial")
_RECORD = re.compile(r"(manifests|uses|holds|key)/[\w.-]+\.json")
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Inventory:
    """The files of a store, from one listing.

    Attributes
    ----------
    segments
        The file of each segment, by key.
    leftovers
        Files that killed jobs did not finish; nobody reads them.
    """

    segments: dict[str, Entry]
    leftovers: list[Entry]

    @classmethod
    def of(cls, store: KVStore) -> "Inventory":
        """List a store.

        Raises
        ------
        StoreError
            It cannot be listed.
        """
        entries = store.folder.list()
        segments = {key: entry for entry in entries if (key := segment_key(entry.name))}
        return cls(segments, [entry for entry in entries if _is_leftover(entry.name)])

    @property
    def bytes(self) -> int:
        """The size of all segments."""
        return sum(entry.size for entry in self.segments.values())

    def last_used(self, store: KVStore) -> dict[str, float]:
        """When each segment was last written, or a job whose manifest names it began (seconds since the epoch).

        A time in the future comes from a clock that is wrong, and counts as now.
        """
        used = store.manifests.last_used()
        now = time.time()
        return {key: min(now, max(entry.modified, used.get(key, 0.0))) for key, entry in self.segments.items()}


def _is_leftover(name: str) -> bool:
    """Whether this is the name of an unfinished file of the store."""
    match = _PARTIAL.fullmatch(name)
    return match is not None and bool(segment_key(match[1]) or _RECORD.fullmatch(match[1]))


def list_segments(store: KVStore, *, progress: bool = False) -> "pd.DataFrame":
    """A row per segment, the most recently used first.

    Returns
    -------
    DataFrame
        ``key, tokens, bytes, stored_as, dtype, model, last_use, held``. ``tokens``, ``stored_as``, ``dtype`` and
        ``model`` are missing for a damaged file; ``last_use`` is in UTC; ``held`` says whether a running job needs the
        segment.
    """
    with extra("evaluation", "a table of a store's segments"):
        import pandas as pd

    inventory = Inventory.of(store)
    held = {key for lease in store.holds.standing() for key in lease.keys}
    headers = map_in_threads(lambda key: _header_fields(store, key), inventory.segments, "headers", progress=progress)
    used = inventory.last_used(store)
    rows = [
        {"key": key, "bytes": entry.size, "last_use": used[key], "held": key in held} | header
        for (key, entry), header in zip(inventory.segments.items(), headers, strict=True)
    ]
    columns = ["key", "tokens", "bytes", "stored_as", "dtype", "model", "last_use", "held"]
    table = pd.DataFrame(rows, columns=columns)
    table["last_use"] = pd.to_datetime(table["last_use"].astype(float), unit="s", utc=True)
    return table.sort_values(["last_use", "key"], ascending=[False, True])


def _header_fields(store: KVStore, key: str) -> dict:
    """What a segment's header says; all None where it cannot be read."""
    fields = ("stored_as", "dtype", "model")
    try:
        header = read_header(FileSource(store.segments, key, store.folder.local))
        tokens = header.tensors["surprisal"].shape[0]
    except (OSError, StoreError, ValueError, LookupError):
        return dict.fromkeys(("tokens", *fields))
    return {"tokens": tokens} | {name: header.identity[name] for name in fields}


def sharing(store: KVStore) -> "pd.DataFrame":
    """For each manifest: what its prompts need, and what they save by sharing segments.

    Returns
    -------
    DataFrame
        ``manifest, tasks, references, segments, stored, bytes, saved``: how often the prompts refer to a segment, how
        many distinct segments these are, how many of them are stored, the bytes of those, and the bytes that all
        references beyond the first to each would take if nothing was shared.
    """
    with extra("evaluation", "a table of what prompts share"):
        import pandas as pd

    sizes = {key: entry.size for key, entry in Inventory.of(store).segments.items()}
    rows = []
    for name in store.manifests.names():
        manifest = store.manifests.read(name)
        references = manifest.references
        stored = {key: sizes[key] for key in references if key in sizes}
        rows.append(
            {
                "manifest": name,
                "tasks": len(manifest.tasks),
                "references": references.total(),
                "segments": len(references),
                "stored": len(stored),
                "bytes": sum(stored.values()),
                "saved": sum((references[key] - 1) * size for key, size in stored.items()),
            }
        )
    return pd.DataFrame(rows, columns=["manifest", "tasks", "references", "segments", "stored", "bytes", "saved"])


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], label: str, *, progress: bool, threads: int = 8
) -> list[Result]:
    """Apply a function to each item, in threads; it waits for files or hashes, and Python lets both overlap."""
    items = list(items)
    with ThreadPoolExecutor(threads) as pool:
        return list(tqdm(pool.map(function, items), label, total=len(items), disable=not progress))
