"""A local folder in front of a remote store: segments that were fetched once are read, and verified, from there."""

import os
from contextlib import suppress
from pathlib import Path

from ragkv.store.checksums import Checksums
from ragkv.store.errors import StoreError
from ragkv.store.files import Folder, is_abandoned
from ragkv.store.local_files import Entry
from ragkv.store.segment_file import KEY, check_file

SUFFIX = ".cached"


class Cache:
    """Copies of segments' files, up to a number of bytes; the least recently used leave first.

    Parameters
    ----------
    folder
        On a local disk; several processes may share it.
    limit
        In bytes. A process lists the folder again when it has added a quarter of the free space that it last saw, so
        four processes together stay within the limit.

    Raises
    ------
    ValueError
        The limit is negative.
    """

    def __init__(self, folder: str | Path, limit: float):
        if limit < 0:
            raise ValueError(f"a cache of {limit} bytes: give a limit of 0 or more")
        self.folder = Path(folder).absolute()
        self.limit = int(limit)
        self._files = Folder(str(self.folder))
        self._allowance = 0  # bytes that may be added before the folder is listed again

    def get(self, key: str, checksums: Checksums) -> bytes | None:
        """A segment's file, or None if there is no intact copy; a damaged copy is removed."""
        try:
            data = self._files.read(_name(key))
            check_file(key, data, checksums)
        except FileNotFoundError:
            return None
        except (StoreError, ValueError):
            self.drop(key)
            return None
        with suppress(OSError):  # another process removed it, or owns it
            os.utime(self._files.path(_name(key)))
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep a copy if it fits; that the folder cannot be listed or written to is no error."""
        with suppress(StoreError):
            if len(data) > self._allowance:
                self._make_space(len(data))
            if len(data) <= self._allowance:
                self._files.write(_name(key), data)
                self._allowance -= len(data)

    def drop(self, key: str) -> None:
        """Remove a copy; one that cannot be removed stays."""
        with suppress(StoreError):
            self._files.remove(_name(key))

    def bytes(self) -> int:
        """The size of all copies."""
        return sum(entry.size for entry in self._copies().values())

    def _copies(self) -> dict[str, Entry]:
        """The copies by key."""
        entries = (entry for entry in self._files.list() if entry.name.endswith(SUFFIX))
        named = {entry.name.rpartition("/")[2].removesuffix(SUFFIX): entry for entry in entries}
        return {key: entry for key, entry in named.items() if KEY.fullmatch(key)}

    def _make_space(self, needed: int) -> None:
        """Remove copies until `needed` bytes fit, and some more so that this is not done for every new copy."""
        for entry in self._files.list():
            if entry.name.endswith(".partial") and is_abandoned(entry):
                self._files.remove(entry.name)
        copies = sorted(self._copies().items(), key=lambda item: item[1].modified)
        total = sum(entry.size for _, entry in copies)
        if total + needed > self.limit:
            target = min(self.limit - needed, 3 * self.limit // 4)
            for key, entry in copies:
                if total <= target:
                    break
                self.drop(key)
                total -= entry.size
        free = max(0, self.limit - total)
        self._allowance = max(free // 4, needed if needed <= free else 0)


def _name(key: str) -> str:
    return f"{key[:2]}/{key}{SUFFIX}"
