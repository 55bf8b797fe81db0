"""Shared memory that keys and values are handed over in. The engine lends it, so it outlives a worker that dies."""

import os
from contextlib import suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from tempfile import mkstemp

import torch

SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "ragkv-"


@dataclass(frozen=True)
class KVShape:
    """The shape of a model's keys and values.

    Attributes
    ----------
    layers, kv_heads, head_dim
        Of the whole model, whatever part of it a process holds.
    dtype
        Of each number.
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    def numbers(self, tokens: int) -> int:
        """How many numbers the keys and values of that many tokens are."""
        return self.layers * 2 * tokens * self.kv_heads * self.head_dim


class Buffers:
    """A few files in shared memory, each with room for the keys and values of one prompt.

    Memory is taken only for what is written to them, or when they are pinned.

    Parameters
    ----------
    number
        How many are in use at most.
    size
        Bytes of each.
    """

    def __init__(self, number: int, size: int):
        self._size = size
        self._number = number
        self._free: list[str] = []
        self._lent: set[str] = set()
        self._files: dict[str, int] = {}  # descriptors by path: each has a lock, which ends with this process
        remove_abandoned()

    @property
    def lent(self) -> int:
        """How many are in use."""
        return len(self._lent)

    def take(self) -> str | None:
        """The path of a buffer that nobody uses; None if all are in use."""
        if len(self._lent) == self._number:
            return None
        path = self._free.pop() if self._free else self._create()
        self._lent.add(path)
        return path

    def give_back(self, path: str) -> None:
        """The buffer has been read, and nobody will write to it: it can be lent again."""
        self._lent.remove(path)
        self._free.append(path)

    def discard(self, path: str) -> None:
        """Another process may still write to the buffer: another one takes its place."""
        self._lent.remove(path)
        self._remove(path)

    def close(self) -> None:
        """Remove all files."""
        for path in list(self._files):
            self._remove(path)
        self._free.clear()
        self._lent.clear()

    def _create(self) -> str:
        while True:
            file, path = mkstemp(prefix=_PREFIX, dir=SHARED_MEMORY)  # no other user can open it
            flock(file, LOCK_EX)
            if os.fstat(file).st_nlink > 0:
                break
            os.close(file)  # another engine, which is just starting, found it without a lock and removed it
        os.ftruncate(file, self._size)
        self._files[path] = file
        return path

    def _remove(self, path: str) -> None:
        Path(path).unlink(missing_ok=True)
        os.close(self._files.pop(path))


def remove_abandoned() -> None:
    """Remove buffers of processes that were killed: nobody holds a lock on them."""
    for path in SHARED_MEMORY.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or just removed
            file = os.open(path, os.O_RDWR)
            try:
                flock(file, LOCK_EX | LOCK_NB)
                path.unlink()
            finally:
                os.close(file)
