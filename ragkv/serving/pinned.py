"""Pinned memory: a GPU copies from and to it by itself, while the host goes on."""

from typing import Protocol

import torch
from torch import Tensor

from ragkv.loading import pinned


class Pinning(Protocol):
    """Pins memory that exists already. `CudaPinning` is the real one."""

    def pin(self, memory: Tensor) -> None:
        """Pin memory.

        Raises
        ------
        MemoryError
            It cannot be pinned.
        """

    def unpin(self, memory: Tensor) -> None:
        """Undo `pin`, once no copy from or to the memory is running any more."""


class CudaPinning:
    """Has CUDA pin memory of this process. Each process that maps shared memory pins it for itself."""

    def pin(self, memory: Tensor) -> None:
        error = pinned.pin(memory.data_ptr(), memory.nbytes)
        if error is None:
            return
        raise MemoryError(
            f"{memory.nbytes / 2**30:.2f} GiB of shared memory could not be pinned ({error}): "
            "serve with fewer buffers (--buffers) or shorter prompts (--tokens)"
        )

    def unpin(self, memory: Tensor) -> None:
        pinned.unpin(memory.data_ptr())


def wait_for_copies(devices: set[torch.device]) -> None:
    """Wait until all copies from and to these devices have ended."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
