"""The files of segments: where they are, and how an eviction sets them aside before it removes them.

An eviction must not remove a segment that a job has begun to hold meanwhile, even if the evicting process was stopped
for hours in between. So it does not remove segments from their places. It first moves them to another folder, then
looks at the holds, and then removes from there what nobody holds. A job first writes down what it holds, and then moves
back what it needs from that folder. Whichever of the two comes second sees the other, and no clocks are involved.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from ragkv.store.errors import FullDiskError, ReadOnlyError
from ragkv.store.files import Folder
from ragkv.store.local_files import Entry
from ragkv.store.segment_file import KEY

ASIDE = "evicting"  # the folder
SUFFIX = ".safetensors"
_SETTLED = 1e9  # nanoseconds; a file that was written more recently may be rewritten with the same time
Result = TypeVar("Result")


class SegmentFiles:
    """The files of segments, by key. A segment that was set aside is moved back when it is read."""

    def __init__(self, folder: Folder):
        self._folder = folder

    def path(self, key: str) -> str:
        """The path of a segment's file."""
        return self._folder.path(segment_name(key))

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes of a segment's file; errors are those of `Folder.read`."""
        return self._found(key, lambda name: self._folder.read(name, start, stop))

    def read_into(self, key: str, start: int, buffers: Sequence[memoryview]) -> int:
        """See `Folder.read_into`."""
        return self._found(key, lambda name: self._folder.read_into(name, start, buffers))

    def size(self, key: str) -> int:
        """The size of a segment's file in bytes; errors are those of `Folder.read`."""
        return self._found(key, self._folder.size)

    def exists(self, key: str) -> bool:
        """Whether the segment has a file."""
        try:
            return self.size(key) >= 0
        except FileNotFoundError:
            return False

    def stamp(self, key: str) -> tuple[int, int, int] | None:
        """(inode, size, mtime): changes when the file is rewritten. None for a remote or just-written file.

        A file that was written less than a second ago has no stamp, since the next write could have the same time:
        file systems keep coarse times. Errors are those of `Folder.read`.
        """
        if not self._folder.local:
            return None
        status = self._found(key, self._folder.status)
        settled = time.time_ns() - status.st_mtime_ns > _SETTLED
        return (status.st_ino, status.st_size, status.st_mtime_ns) if settled else None

    def write(self, key: str, data: bytes) -> None:
        """Write a segment's file; errors are those of `Folder.write`."""
        self._folder.write(segment_name(key), data)

    def list(self) -> dict[str, Entry]:
        """All segments' files by key, sorted; errors are those of `Folder.list`."""
        return {key: entry for entry in self._folder.list() if (key := segment_key(entry.name))}

    def list_aside(self) -> dict[str, Entry]:
        """The files of segments that are set aside, by key; errors are those of `Folder.list`."""
        names = {entry.name.removeprefix(f"{ASIDE}/").removesuffix(SUFFIX): entry for entry in self._folder.list(ASIDE)}
        return {key: entry for key, entry in names.items() if KEY.fullmatch(key) and entry.name == _aside_name(key)}

    def set_aside(self, key: str) -> bool:
        """Move a segment away from its place, if it is there; errors are those of `Folder.move`.

        Returns
        -------
        bool
            Whether it was removed instead, because the disk is too full even to make the folder: that makes space.
        """
        try:
            self._folder.move(segment_name(key), _aside_name(key))
        except FileNotFoundError:  # evicted by another process
            return False
        except FullDiskError:
            self._folder.remove(segment_name(key))
            return True
        return False

    def move_back(self, key: str) -> bool:
        """Move a segment that was set aside back to its place; return whether there was one.

        Other errors are those of `Folder.move`.
        """
        try:
            self._folder.move(_aside_name(key), segment_name(key))
        except FileNotFoundError:
            return False
        return True

    def remove_aside(self, key: str) -> bool:
        """Remove a segment that was set aside; return whether it still was."""
        return self._folder.remove(_aside_name(key))

    def _found(self, key: str, operation: Callable[[str], Result]) -> Result:
        """Do something with a segment's file, after moving it back if it was set aside and the store can be changed."""
        name = segment_name(key)
        try:
            return operation(name)
        except FileNotFoundError as missing:
            places = [name]
            try:
                self.move_back(key)  # unless the collector has just done so
            except ReadOnlyError:
                places = [_aside_name(key), name]
            for place in places:
                with suppress(FileNotFoundError):
                    return operation(place)
            raise missing from None


class FileSource:
    """A segment's file as a source of bytes that are read range by range."""

    def __init__(self, files: SegmentFiles, key: str, local: bool):
        self._files = files
        self._key = key
        self.size = files.size(key)
        self.local = files.path(key) if local else None

    def read(self, start: int, stop: int) -> bytes:
        return self._files.read(self._key, start, min(stop, self.size))

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> int:
        return self._files.read_into(self._key, start, buffers)


def segment_name(key: str) -> str:
    """The name of a segment's file in its store.

    Raises
    ------
    ValueError
        This is not the key of a segment.
    """
    if not KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no segment's key: these are 64 hexadecimal digits")
    return f"{key[:2]}/{key}{SUFFIX}"


def segment_key(name: str) -> str | None:
    """The key of the segment whose file has this name; None if no segment's file has it."""
    key = name.rpartition("/")[2].removesuffix(SUFFIX)
    return key if KEY.fullmatch(key) and name == segment_name(key) else None


def _aside_name(key: str) -> str:
    return f"{ASIDE}/{key}{SUFFIX}"
