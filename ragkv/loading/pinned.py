"""Pinning memory that exists already, such as memory that processes share, so that a GPU copies it by itself."""

import torch


def pin(address: int, size: int) -> object | None:
    """Have CUDA pin memory of this process; return CUDA's error if it could not."""
    cuda = torch.cuda.cudart()
    error = cuda.cudaHostRegister(address, size, 0)
    return None if error == cuda.cudaError.success else error


def unpin(address: int) -> None:
    """Undo `pin`."""
    torch.cuda.cudart().cudaHostUnregister(address)
