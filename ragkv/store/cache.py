"""A folder of this machine in front of a remote store: what was fetched once is read from there, and checked."""

import os
from contextlib import suppress
from pathlib import Path

from ragkv.store.files import Folder, StoreError
from ragkv.store.segment_file import KEY, check_file


class Cache:
    """Copies of segments' files, at most so many bytes of them; those not used for longest leave first.

    Parameters
    ----------
    folder
        On a local disk; several processes may share it.
    limit
        In bytes. A process looks at the whole folder whenever it has added a quarter of what was left, so that four
        of them together keep to the limit.

    Raises
    ------
    ValueError
        The limit is negative.
    """

    def __init__(self, folder: str | Path, limit: float):
        if limit < 0:
            raise ValueError(f"a cache of {limit} bytes: give a limit of 0 or more")
        self.folder, self.limit = Path(folder).absolute(), int(limit)
        self._files, self._room = Folder(str(self.folder)), 0

    def get(self, key: str) -> bytes | None:
        """A segment's file, if it is there and whole; a damaged copy is dropped."""
        try:
            data = self._files.read(_name(key))
            check_file(key, data)
        except FileNotFoundError:
            return None
        except (StoreError, ValueError, LookupError, TypeError, AttributeError):
            self.drop(key)
            return None
        with suppress(OSError):  # dropped by another process meanwhile, or not ours to touch
            os.utime(self._files.path(_name(key)))
        return data

    def put(self, key: str, data: bytes) -> None:
        """Keep a copy, if it fits and the disk takes it."""
        if len(data) > self._room:
            self._trim(len(data))
        if len(data) <= self._room:
            with suppress(StoreError):  # without the copy all goes on
                self._files.write(_name(key), data)
                self._room -= len(data)

    def drop(self, key: str) -> None:
        with suppress(StoreError):  # then it stays
            self._files.remove(_name(key))

    def bytes(self) -> int:
        """What the copies take."""
        return sum(entry.size for entry in self._copies())

    def _copies(self) -> list:
        return [e for e in self._files.list() if e.name.endswith(".cached") and KEY.fullmatch(e.name[3:-7])]

    def _trim(self, needed: int) -> None:
        """Make room for `needed` bytes, and for more to come."""
        copies = sorted(self._copies(), key=lambda entry: entry.modified)
        total = sum(entry.size for entry in copies)
        if total + needed > self.limit:
            aim = min(self.limit - needed, 3 * self.limit // 4)
            for entry in copies:
                if total <= aim:
                    break
                self.drop(entry.name[3:-7])
                total -= entry.size
        left = max(0, self.limit - total)
        self._room = max(left // 4, needed if needed <= left else 0)


def _name(key: str) -> str:
    return f"{key[:2]}/{key}.cached"
