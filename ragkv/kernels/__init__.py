"""Triton kernels; each has a plain PyTorch version that its tests compare it with."""

import logging
from functools import cache

import torch


@cache
def kernels_run(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device; says once why not, where one would expect it."""
    if device.type != "cuda":
        return False
    try:
        import triton  # noqa: F401
    except ImportError as error:
        logging.getLogger("ragkv").warning("attention without the triton kernels, which are faster: %s", error)
        return False
    return True
