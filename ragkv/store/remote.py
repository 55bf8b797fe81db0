"""An fsspec file system whose requests end: they have time-outs, and a missing bucket is not an empty store."""

import logging
import os
from collections.abc import Iterator
from threading import Timer
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from ragkv.store.errors import StoreError

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss"}
TIMEOUT_VARIABLE = "RAGKV_STORE_TIMEOUT"
TIMEOUT = 120.0  # seconds for a request, unless the environment says otherwise
LISTINGS = 10  # times that, for a listing, which is many requests
PATIENCE = 10.0  # seconds after which a request that is still waiting is logged

logger = logging.getLogger("ragkv")


class FileSystem:
    """The file system of a URL.

    Parameters
    ----------
    url
        A folder, or any fsspec URL.

    Attributes
    ----------
    root
        The folder's path.
    objects, local
        See `ragkv.store.files.Folder`.

    Raises
    ------
    ValueError
        The URL has no bucket, or climbs out of it; or the time-out is no number.
    """

    def __init__(self, url: str, **storage_options: object):
        self._url = url
        self._options = storage_options
        self._open()
        protocol = self._opened.protocol
        protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self.objects = bool(protocols & OBJECT_STORES)
        self.local = isinstance(self._opened, LocalFileSystem)
        self.root = self._root if self.local else self._checked_root()
        self._timeout = _timeout_from_environment()
        self._has_bucket = not self.objects  # as far as is known

    def _open(self) -> None:
        self._process = os.getpid()
        # Others write to the store, too, so listings are never cached.
        self._opened, self._root = fsspec.core.url_to_fs(self._url, use_listings_cache=False, **self._options)

    def _checked_root(self) -> str:
        """The root without empty names between slashes, under which objects could be written but not listed."""
        names = [name for name in self._root.split("/") if name]
        if self.objects:
            if self._root.startswith("/") or not names:
                raise ValueError(f"the store's URL {self._url!r} names no bucket: give one such as s3://bucket/kv")
            if {".", ".."} & set(names):
                raise ValueError(f"the store's URL {self._url!r} has '.' or '..' in its path: give the path without")
        absolute = "/" if self._root.startswith("/") else ""
        return absolute + "/".join(names)

    @property
    def opened(self) -> Any:
        """The fsspec file system; a forked child opens its own, as it has none of its parent's threads."""
        if self._process != os.getpid():
            self._open()
        return self._opened

    def call(self, method: str, path: str, *args: object, **kwargs: object) -> Any:
        """Call a method of the file system for a path.

        Raises
        ------
        StoreError
            There was no answer in time.
        Exception
            Whatever the method raises.
        """
        if isinstance(self.opened, LocalFileSystem | MemoryFileSystem):
            return getattr(self.opened, method)(path, *args, **kwargs)
        waiting = f"the store {self._url!r} to answer ({method} {path})"
        seconds = self._timeout * (LISTINGS if method in ("find", "ls") else 1)
        if isinstance(self.opened, AsyncFileSystem) and method != "mv":  # others cannot be given a time-out
            kwargs["timeout"] = seconds
        timer = Timer(PATIENCE, logger.warning, ("waiting for %s", waiting))
        timer.daemon = True
        timer.start()
        try:
            return getattr(self.opened, method)(path, *args, **kwargs)
        except FSTimeoutError as error:
            raise StoreError(
                f"waited {seconds:g} seconds for {waiting}, in vain: see that it can be reached, or set "
                f"{TIMEOUT_VARIABLE} to more seconds, and run the same again"
            ) from error
        finally:
            timer.cancel()

    def list_files(self, below: str) -> Iterator[tuple[str, dict]]:
        """Names and properties of the files in one or all direct subfolders."""
        folder = f"{self.root}/{below}" if below else self.root
        for path, info in self._below(folder, 1 if below else 2):
            name = path.removeprefix(f"{self.root}/")
            if info["type"] == "file" and not info.get("islink") and name.count("/") == 1:
                yield name, info

    def _below(self, folder: str, depth: int) -> Iterator[tuple[str, dict]]:
        """Everything up to so many levels below a folder; fsspec's `find` would take errors for empty folders."""
        if self.objects:
            yield from self.call("find", folder, detail=True).items()
            return
        try:
            entries = self.call("ls", folder, detail=True)
        except FileNotFoundError:
            return
        for info in entries:
            if info["type"] == "directory" and depth > 1:
                yield from self._below(info["name"], depth - 1)
            yield info["name"], info

    def require_bucket(self) -> None:
        """Tell an object that is missing from a bucket that is missing.

        Raises
        ------
        StoreError
            There is no such bucket.
        """
        if self._has_bucket:
            return
        bucket = self.root.split("/")[0]
        if not self.call("exists", bucket):
            raise StoreError(
                f"the store {self._url!r} has no bucket {bucket!r}, or it cannot be seen with these credentials: "
                "create it, or correct the URL"
            )
        self._has_bucket = True


def _timeout_from_environment() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{TIMEOUT_VARIABLE} is {text!r}: give a number of seconds above 0")
    return seconds
