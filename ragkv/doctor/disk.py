"""How fast a file is written and read where a store lies, and how much room there is."""

import math
import os
import shutil
from contextlib import suppress
from time import perf_counter
from uuid import uuid4

import fsspec

BYTES = 64 * 2**20


def speed(url: str) -> tuple[float, float]:
    """Bytes a second of writing a file to a folder or fsspec URL and of reading it, past the memory where that can be.

    A local folder that is not there yet is looked at where it would be made; nothing stays.

    Raises
    ------
    OSError
        The file cannot be written there, or other bytes come back.
    """
    files, folder = _folder(url)
    path, data = f"{folder}/{uuid4().hex}.partial", os.urandom(BYTES)
    try:
        start = perf_counter()
        with files.open(path, "wb") as file:
            file.write(data)
            file.flush()
            with suppress(AttributeError, OSError):  # only files of this machine have a number
                os.fsync(file.fileno())
        written = perf_counter()
        with files.open(path, "rb") as file:
            with suppress(AttributeError, OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            whole = file.read() == data
        read = perf_counter()
    finally:
        with suppress(OSError):
            files.rm_file(path)
    if not whole:
        raise OSError("it gives back other bytes than were written")
    return BYTES / (written - start), BYTES / (read - written)


def room(url: str) -> float:
    """Free bytes there; infinite where nobody says."""
    files, folder = _folder(url)
    return shutil.disk_usage(folder).free if _local(files) else math.inf


def _folder(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    files, folder = fsspec.core.url_to_fs(url)
    while _local(files) and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return files, folder


def _local(files: fsspec.AbstractFileSystem) -> bool:
    return "file" in files.protocol
