"""Buffers of shared memory in a process that reads or writes them."""

import os
from errno import ENOSPC

import torch
from torch import Tensor

from ragkv.serving.buffers import KVShape
from ragkv.serving.pinned import Pinning


class MappedBuffers:
    """The buffers that this process has mapped, pinned where there is a GPU.

    Each stays mapped until the engine that lends it removes its file: mapping it again would cost a page fault per
    4 kB, and pinning it again even more.

    Parameters
    ----------
    shape
        Of the keys and values in the buffers.
    pinning
        Pins the buffers; None leaves them as they are. Pinned ones take all of their memory at once.
    """

    def __init__(self, shape: KVShape, pinning: Pinning | None = None):
        self._shape = shape
        self._pinning = pinning
        self._mapped: dict[str, Tensor] = {}

    def keys_and_values(self, path: str, tokens: int) -> Tensor:
        """What a buffer holds of a prompt of that many tokens: ``(layers, 2, tokens, kv_heads, head_dim)``.

        Buffers whose files were removed are unmapped first: no copy from or to them may be running.

        Raises
        ------
        OSError, RuntimeError
            The file does not exist any more, or is too small.
        MemoryError
            It cannot be pinned.
        """
        for other in [other for other in self._mapped if not os.path.exists(other)]:
            self._let_go(other)
        if path not in self._mapped:
            self._mapped[path] = self._map(path)
        shape = self._shape
        numbers = self._mapped[path][: shape.numbers(tokens)]
        return numbers.view(shape.layers, 2, tokens, shape.kv_heads, shape.head_dim)

    def reserve(self, path: str, tokens: int) -> None:
        """Take the memory for a prompt of that many tokens. Without it, writing to a buffer can end this process.

        Raises
        ------
        MemoryError
            The shared memory of this machine is full.
        """
        size = self._shape.numbers(tokens) * self._shape.dtype.itemsize
        file = os.open(path, os.O_RDWR)
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno != ENOSPC:
                raise
            raise MemoryError(
                f"shared memory (/dev/shm) has no {size / 2**30:.2f} GiB left for a prompt's keys and values: make it "
                "larger (docker run --shm-size), or serve with fewer buffers (--buffers) or shorter prompts (--tokens)"
            ) from error
        finally:
            os.close(file)

    def _map(self, path: str) -> Tensor:
        dtype = self._shape.dtype
        memory = torch.from_file(path, shared=True, size=os.path.getsize(path) // dtype.itemsize, dtype=dtype)
        if self._pinning is not None:
            self._pinning.pin(memory)
        return memory

    def _let_go(self, path: str) -> None:
        memory = self._mapped.pop(path)
        if self._pinning is not None:
            self._pinning.unpin(memory)
