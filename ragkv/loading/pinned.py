"""Pinning memory that exists already, such as memory that processes share, so that a GPU copies it by itself."""

from contextlib import suppress

import torch


def pin(address: int, size: int) -> object | None:
    """Have CUDA pin memory of this process; return CUDA's error if it could not. Kernels can be started afterwards."""
    cuda = torch.cuda.cudart()
    error = cuda.cudaHostRegister(address, size, 0)
    if error == cuda.cudaError.success:
        return None
    _let_a_kernel_fail()
    return error


def unpin(address: int) -> None:
    """Undo `pin`."""
    torch.cuda.cudart().cudaHostUnregister(address)


def _let_a_kernel_fail() -> None:
    """Start a kernel that does nothing useful: CUDA reports an error once more when the next kernel is started."""
    with suppress(RuntimeError):
        torch.ones(1, device="cuda")
