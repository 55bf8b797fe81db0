"""A folder on any fsspec file system: its files appear complete or not at all, and nothing outside it is touched."""

import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, TypeVar
from uuid import uuid4

import xxhash

from ragkv.store import local_files
from ragkv.store.errors import FullDiskError, ReadOnlyError, StoreError
from ragkv.store.local_files import Entry
from ragkv.store.remote import FileSystem

LEFTOVER_AGE = 3600.0  # seconds; no write takes that long
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
Value = TypeVar("Value")


class Folder:
    """Files below one folder, by their names ``"<subfolder>/<file>"``.

    Parameters
    ----------
    url
        A folder, or any fsspec URL.
    storage_options
        Passed on to fsspec.

    Attributes
    ----------
    root
        The folder's path on its file system.
    objects
        Whether it is in an object store, which writes an object completely by one request.
    local
        Whether it is on a file system of this machine.

    Raises
    ------
    ValueError
        The URL names no folder.
    """

    def __init__(self, url: str, **storage_options: object):
        self.url = url
        self._file_system = FileSystem(url, **storage_options)
        self.root = self._file_system.root
        self.objects = self._file_system.objects
        self.local = self._file_system.local

    @property
    def files(self) -> Any:
        """The fsspec file system."""
        return self._file_system.opened

    def path(self, name: str) -> str:
        """The path of a file on its file system."""
        return f"{self.root}/{name}"

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes of a file from `start` up to `stop`, or to its end.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        StoreError
            The file cannot be read, or it is unknown whether there is one.
        """
        with self._reading(name):
            if self.local:
                return local_files.read(self.path(name), start, stop)
            return self._file_system.call("cat_file", self.path(name), start=start, end=stop)

    def read_into(self, name: str, start: int, buffers: Sequence[memoryview]) -> int:
        """Fill buffers one after the other with a file's bytes from `start` on; return how many bytes were read.

        Errors are those of `read`.
        """
        if self.local:
            with self._reading(name):
                return local_files.read_into(self.path(name), start, buffers)
        return local_files.scatter(self.read(name, start, start + sum(map(len, buffers))), buffers)

    def size(self, name: str) -> int:
        """The size of a file in bytes; errors are those of `read`."""
        with self._reading(name):
            if self.local:
                return local_files.status(self.path(name)).st_size
            return self._file_system.call("size", self.path(name))

    def status(self, name: str) -> os.stat_result:
        """The status of a local file; errors are those of `read`."""
        with self._reading(name):
            return local_files.status(self.path(name))

    def list(self, below: str = "") -> list[Entry]:
        """All files in one or all direct subfolders, sorted by name; links are not followed.

        Raises
        ------
        StoreError
            A folder cannot be listed. One that does not exist yet is empty.
        """
        try:
            with self._reading(below or "."):
                if self.local:
                    found = local_files.list_files(self.root, below)
                else:
                    found = [_entry(name, info) for name, info in self._file_system.list_files(below)]
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda entry: entry.name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file: completely, or not at all.

        Raises
        ------
        StoreError
            The folder cannot be written to, or the disk is full; what was there before stays.
        """
        path = self.path(name)
        temporary = f"{path}.{uuid4().hex}.partial"  # of this writer alone: others may write the same file
        with self._writing():
            if self.objects:
                self._file_system.call("pipe_file", path, data)
                return
            self._make_folder(name)
            try:
                self._file_system.call("pipe_file", temporary, data)
                self._rename(temporary, path)
            except BaseException:
                with suppress(Exception):  # it was never made, or cannot be removed either
                    self._file_system.call("rm_file", temporary)
                raise

    def move(self, name: str, target: str) -> None:
        """Rename a file to another name in this folder, replacing what is there; no space is needed.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        StoreError
            It cannot be moved.
        """
        source_path, target_path = self.path(name), self.path(target)
        with self._writing(absent=name):
            if self.objects:  # has no renames
                self._file_system.call("cp_file", source_path, target_path)
                self._file_system.call("rm_file", source_path)
                return
            if not self._file_system.call("exists", source_path):  # for which no folder is made
                raise FileNotFoundError(source_path)
            self._make_folder(target)
            self._rename(source_path, target_path)

    def touch(self, name: str) -> None:
        """Set the time of a local file to now, which works on a full disk, too; other files are left as they are.

        Raises
        ------
        StoreError
            It cannot be done.
        """
        if self.local:
            with self._writing():
                os.utime(self.path(name))

    def remove(self, name: str) -> bool:
        """Remove a file, if it is there; return whether it was. Object stores do not say, and are taken to have it.

        Raises
        ------
        StoreError
            It cannot be removed.
        """
        try:
            self._file_system.call("rm_file", self.path(name))
        except FileNotFoundError:
            self._file_system.require_bucket()
            return False
        except StoreError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise StoreError(f"cannot remove {self.path(name)}: {_reason(error)}") from error
        return True

    def write_json(self, name: str, value: dict) -> None:
        """Write a value with its checksum; errors are those of `write`."""
        text = json.dumps(value, sort_keys=True)
        self.write(name, f'{{"checksum": "{xxhash.xxh3_128_hexdigest(text.encode())}", "value": {text}}}\n'.encode())

    def read_json(self, name: str, parse: Callable[[dict], Value]) -> Value:
        """Read and parse what `write_json` wrote; errors are those of `read`, also if it is damaged."""
        try:
            content = json.loads(self.read(name))
            text = json.dumps(content["value"], sort_keys=True)
            if content["checksum"] != xxhash.xxh3_128_hexdigest(text.encode()):
                raise ValueError("it does not match its checksum")
            return parse(content["value"])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(
                f"{self.path(name)} is damaged ({error}): remove it, once no job uses the store, and run again"
            ) from error

    def _make_folder(self, name: str) -> None:
        """Make the subfolder of a file."""
        subfolder = self.path(name).rpartition("/")[0]
        self._file_system.call("makedirs", subfolder, exist_ok=True)
        if self.local and os.path.islink(subfolder):
            raise StoreError(f"{subfolder} leads elsewhere by a link: nothing was written; remove it")

    def _rename(self, source: str, target: str) -> None:
        if self.local:
            os.replace(source, target)
        else:
            self._file_system.call("mv", source, target)

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            self._file_system.require_bucket()
            raise
        except StoreError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise StoreError(
                f"cannot read {self.path(name)} ({_reason(error)}): see that the store {self.url!r} can be reached and "
                "read, and run the same again; what was computed is kept"
            ) from error

    @contextmanager
    def _writing(self, absent: str | None = None) -> Iterator[None]:
        """Errors while something is written; that the file named `absent` is not there is not one of these."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:  # each file system has errors of its own
            if absent and isinstance(error, FileNotFoundError):
                self._file_system.require_bucket()
                raise
            number = getattr(error, "errno", None)
            kind = StoreError
            if number == errno.ENOSPC:
                kind = FullDiskError
            elif number in _FORBIDDEN or isinstance(error, PermissionError):
                kind = ReadOnlyError
            raise kind(
                f"cannot write to the store {self.url!r}: {_reason(error)}. What was stored before is unharmed: "
                "make room, choose a folder that can be written to, or see that the store can be reached, and run the "
                "same again"
            ) from error


def is_abandoned(entry: Entry) -> bool:
    """Whether an unfinished file is so old that its writer must have been killed."""
    return entry.modified < time.time() - LEFTOVER_AGE


def _reason(error: Exception) -> str:
    if getattr(error, "errno", None) == errno.ENOSPC:
        return "the disk is full"
    return str(error) or type(error).__name__


def _entry(name: str, info: dict) -> Entry:
    """A file's entry; file systems have several names for the time at which it was last written."""
    names = ("mtime", "LastModified", "last_modified", "updated", "created")
    modified = next((info[key] for key in names if info.get(key)), 0.0)
    seconds = modified.timestamp() if isinstance(modified, datetime) else float(modified)
    return Entry(name, info["size"], seconds)
