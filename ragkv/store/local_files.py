"""Local files: only regular files are read, and a folder that cannot be listed is an error."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ragkv.store.read_worker import open_regular


@dataclass(frozen=True)
class Entry:
    """A file in a listing: its name below the folder, its size in bytes, and when it was last written (seconds)."""

    name: str
    size: int
    modified: float


def status(path: str) -> os.stat_result:
    """The status of a regular file; an OSError if it is anything else, or not there."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is not a regular file: remove it")
    return found


def read(path: str, start: int, stop: int | None) -> bytes:
    """The bytes of a file from `start` up to `stop`, or to its end."""
    with _opened(path) as file:
        size = os.fstat(file).st_size
        data = bytearray(max(0, (size if stop is None else min(stop, size)) - start))
        count = _fill(file, start, [memoryview(data)])
        return bytes(data[:count]) if count < len(data) else bytes(data)


def read_into(path: str, start: int, buffers: Sequence[memoryview]) -> int:
    """Fill buffers one after the other with the bytes of a file from `start` on; return the number of bytes read.

    The system copies them straight into the buffers, so threads that read do not wait for each other.
    """
    with _opened(path) as file:
        return _fill(file, start, buffers)


def _fill(file: int, start: int, buffers: Sequence[memoryview]) -> int:
    done = 0
    while buffers and (count := os.preadv(file, buffers, start + done)):  # it may read less than it was asked to
        buffers = _after(buffers, count)
        done += count
    return done


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """A file descriptor; with few system calls, as after each of them a thread may have to wait for the interpreter."""
    file = open_regular(path)
    try:
        yield file
    finally:
        os.close(file)


def _after(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """The buffers without their first `count` bytes."""
    remaining = []
    for buffer in buffers:
        skipped = min(count, len(buffer))
        count -= skipped
        if skipped < len(buffer):
            remaining.append(buffer[skipped:])
    return remaining


def scatter(data: bytes | memoryview, buffers: Sequence[memoryview]) -> int:
    """Copy bytes into the buffers, one after the other; return how many were copied."""
    done = 0
    for buffer in buffers:
        block = data[done : done + len(buffer)]
        buffer[: len(block)] = block
        done += len(block)
    return done


def list_files(root: str, below: str = "") -> list[Entry]:
    """The regular files in one or all direct subfolders of `root`; links are not followed.

    Raises
    ------
    OSError
        A folder cannot be listed. A folder that does not exist is empty.
    """
    if below:
        if os.path.islink(f"{root}/{below}"):
            raise OSError("it leads elsewhere by a link: remove it")
        subfolders = [below]
    else:
        subfolders = [entry.name for entry in _scan(root) if entry.is_dir(follow_symlinks=False)]
    found = []
    for subfolder in subfolders:
        for entry in _scan(f"{root}/{subfolder}"):
            with suppress(FileNotFoundError):  # removed since
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    found.append(Entry(f"{subfolder}/{entry.name}", status.st_size, status.st_mtime))
    return found


def _scan(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise OSError("it is a link that leads nowhere: is a disk not mounted?") from None
        return []
