"""How fast files are written and read where a store is, and how much space is left there."""

import math
import os
import shutil
from contextlib import suppress
from time import perf_counter
from uuid import uuid4

import fsspec

BYTES = 64 * 2**20


def speed(url: str) -> tuple[float, float]:
    """Write a file to a folder or fsspec URL, read it back, and remove it.

    A folder that does not exist is not created: its nearest existing parent is measured.

    Returns
    -------
    tuple of float
        Bytes per second of writing and of reading. Where the system allows it, reading bypasses the page cache.

    Raises
    ------
    OSError
        The file cannot be written, or other bytes come back.
    """
    files, folder = _existing_folder(url)
    path = f"{folder}/{uuid4().hex}.partial"
    data = os.urandom(BYTES)
    try:
        start = perf_counter()
        with files.open(path, "wb") as file:
            file.write(data)
            file.flush()
            with suppress(AttributeError, OSError):  # only local files have a descriptor
                os.fsync(file.fileno())
        written = perf_counter()
        with files.open(path, "rb") as file:
            with suppress(AttributeError, OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            unchanged = file.read() == data
        read = perf_counter()
    finally:
        with suppress(OSError):
            files.rm_file(path)
    if not unchanged:
        raise OSError("it gives back other bytes than were written")
    return BYTES / (written - start), BYTES / (read - written)


def free_bytes(url: str) -> float:
    """Free space at a folder or fsspec URL; infinite where the file system does not tell."""
    files, folder = _existing_folder(url)
    return shutil.disk_usage(folder).free if _is_local(files) else math.inf


def _existing_folder(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system and the folder, or its nearest parent that exists."""
    files, folder = fsspec.core.url_to_fs(url)
    while _is_local(files) and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return files, folder


def _is_local(files: fsspec.AbstractFileSystem) -> bool:
    return "file" in files.protocol
