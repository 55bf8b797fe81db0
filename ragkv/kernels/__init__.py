"""Triton kernels; each has a plain PyTorch version that its tests compare it with."""

import logging
from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Given, Result = ParamSpec("Given"), TypeVar("Result")


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


def on_its_gpu(launch: Callable[Given, Result]) -> Callable[Given, Result]:
    """What starts kernels, made to start them on the GPU of its first argument, whichever is the current one."""

    @wraps(launch)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        first = args[0]
        while not isinstance(first, Tensor):
            first = first[0]  # of several
        with torch.cuda.device_of(first):
            return launch(*args, **kwargs)

    return run
