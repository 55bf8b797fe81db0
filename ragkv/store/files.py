"""A folder on any fsspec file system: files appear whole or not at all, and stay inside it."""

import errno
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import fsspec
import xxhash
from fsspec.implementations.local import LocalFileSystem

from ragkv.store.segment_file import scatter

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss"}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class StoreError(RuntimeError):
    """The store cannot give or take a segment; the message says which, and what to do."""


class ReadOnlyError(StoreError):
    """The store may be read but not written to."""


@dataclass(frozen=True)
class Entry:
    """A file in a listing: where it lies below the folder, its bytes, and when it was last written (seconds)."""

    name: str
    size: int
    modified: float


class Folder:
    """Files by their names below one folder, ``"<subfolder>/<file>"``.

    Parameters
    ----------
    url
        A folder, or any fsspec URL.

    Attributes
    ----------
    objects
        It is an object store: an object is put and fetched whole, each in one request.
    local
        It is a folder of this machine's file systems.
    """

    def __init__(self, url: str, **storage_options: object):
        self.url = url
        # others write to it too: what was listed before says nothing
        self.files, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False, **storage_options)
        protocols = {self.files.protocol} if isinstance(self.files.protocol, str) else set(self.files.protocol)
        self.objects, self.local = bool(protocols & OBJECT_STORES), isinstance(self.files, LocalFileSystem)

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """A file's bytes.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        StoreError
            It is there, or may be, and cannot be read.
        """
        with self._reading(name):
            return self.files.cat_file(self.path(name), start=start, end=stop)

    def read_into(self, name: str, start: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers one after the other with a file's bytes; how many there were. Errors as in `read`.

        A local file's are copied once, by the system itself: threads that read do not wait for each other.
        """
        if not self.local:
            return scatter(self.read(name, start, start + sum(map(len, buffers))), buffers)
        with self._reading(name), _opened(self.path(name)) as file:
            done = 0
            while buffers and (count := os.preadv(file, buffers, start + done)):  # it may give less than asked
                buffers, done = _behind(buffers, count), done + count
            return done

    def size(self, name: str) -> int:
        """A file's bytes; errors as in `read`."""
        with self._reading(name):
            return self.files.size(self.path(name))

    def stamp(self, name: str) -> tuple[int, int, int] | None:
        """What a local file that is written anew has otherwise; None of others. Errors as in `read`.

        Nor does one just written have a stamp: its time could be that of the next one, as clocks of files are coarse.
        """
        if not self.local:
            return None
        with self._reading(name):
            found = os.stat(self.path(name))
        settled = time.time_ns() - found.st_mtime_ns > 1e9
        return (found.st_ino, found.st_size, found.st_mtime_ns) if settled else None

    def exists(self, name: str) -> bool:
        try:
            return self.size(name) >= 0
        except FileNotFoundError:
            return False

    def list(self, below: str = "") -> list[Entry]:
        """All files in one or all subfolders, but for what links lead to, sorted; none where nothing is yet."""
        depth = None if self.objects else 1 if below else 2
        try:
            with self._reading(below or "."):
                found = self.files.find(self.path(below) if below else self.root, maxdepth=depth, detail=True)
        except FileNotFoundError:
            return []
        entries = [
            Entry(path.removeprefix(f"{self.root}/"), info["size"], _modified(info))
            for path, info in found.items()
            if info["type"] == "file" and not info.get("islink")
        ]
        inside = {folder: self._inside(folder) for folder in {_parent(entry.name) for entry in entries}}
        return sorted((e for e in entries if e.name.count("/") == 1 and inside[_parent(e.name)]), key=lambda e: e.name)

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, whole or not at all.

        Raises
        ------
        StoreError
            It cannot be written to or is full; what was there before stays.
        """
        path, folder = self.path(name), _parent(name)
        target = path if self.objects else f"{path}.{uuid4().hex}.partial"
        try:
            if not self.objects:
                self.files.makedirs(self.path(folder), exist_ok=True)
            if not self._inside(folder):
                raise StoreError(f"{self.path(folder)} leads elsewhere by a link: nothing was written; remove it")
            self.files.pipe_file(target, data)
            if target != path:
                self.files.mv(target, path)
        except StoreError:
            raise
        except Exception as error:  # each file system has errors of its own
            if target != path:
                with suppress(StoreError):  # it was never made, or cannot be removed either
                    self.remove(target.removeprefix(f"{self.root}/"))
            number = getattr(error, "errno", None)
            reason = "the disk is full" if number == errno.ENOSPC else str(error) or type(error).__name__
            kind = ReadOnlyError if number in _FORBIDDEN or isinstance(error, PermissionError) else StoreError
            raise kind(
                f"cannot write to the store {self.url!r}: {reason}. What was stored before is unharmed: "
                "make room, choose a folder that can be written to, or see that the store can be reached, and run the "
                "same again"
            ) from error

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises
        ------
        StoreError
            It cannot be removed.
        """
        try:
            self.files.rm_file(self.path(name))
        except FileNotFoundError:
            return
        except Exception as error:
            raise StoreError(f"cannot remove {self.path(name)}: {str(error) or type(error).__name__}") from error

    def write_json(self, name: str, value: dict) -> None:
        """Write `value` with its checksum; errors as in `write`."""
        text = json.dumps(value, sort_keys=True)
        self.write(name, f'{{"checksum": "{xxhash.xxh3_128_hexdigest(text.encode())}", "value": {text}}}\n'.encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """What `write_json` wrote; errors as in `read`, and where it is damaged."""
        try:
            found = json.loads(self.read(name))
            text = json.dumps(found["value"], sort_keys=True)
            if found["checksum"] != xxhash.xxh3_128_hexdigest(text.encode()):
                raise ValueError("it does not match its checksum")
            return found["value"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{self.path(name)} is damaged ({error}): remove it, once no job uses the store, and run again"
            ) from error

    def _inside(self, folder: str) -> bool:
        """Whether a subfolder really lies in this folder."""
        return not self.local or os.path.realpath(self.path(folder)) == f"{os.path.realpath(self.root)}/{folder}"

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            raise StoreError(
                f"cannot read {self.path(name)} ({str(error) or type(error).__name__}): see that the store "
                f"{self.url!r} can be reached and read, and run the same again; what was computed is kept"
            ) from error


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """A local file for reading, by as few system calls as it takes: a thread may wait for Python after each."""
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def _behind(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left of the buffers behind their first `count` bytes."""
    left = []
    for buffer in buffers:
        skipped = min(count, len(buffer))
        count -= skipped
        if skipped < len(buffer):
            left.append(buffer[skipped:])
    return left


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _modified(info: dict) -> float:
    """When a file was last written, by whatever name its file system has for it."""
    names = ("mtime", "LastModified", "last_modified", "updated", "created")
    when = next((info[name] for name in names if info.get(name)), 0.0)
    return when.timestamp() if isinstance(when, datetime) else float(when)
