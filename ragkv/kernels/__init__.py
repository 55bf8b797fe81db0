"""Triton kernels. Each has a plain PyTorch version, with which its tests compare it."""

import logging
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

Params = ParamSpec("Params")
Result = TypeVar("Result")


@cache
def kernels_run(device: torch.device) -> bool:
    """Whether Triton kernels run on a device. If they should but do not, the reason is logged once."""
    if device.type != "cuda":
        return False
    try:
        import triton  # noqa: F401
    except ImportError as error:
        logging.getLogger("ragkv").warning("attention without the triton kernels, which are faster: %s", error)
        return False
    return True


def on_its_gpu(launch: Callable[Params, Result]) -> Callable[Params, Result]:
    """Make a function launch its kernels on the GPU of its first argument, whichever GPU is the current one.

    The first argument is a tensor, or a sequence of tensors.
    """

    @wraps(launch)
    def run(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        first: Any = args[0]
        while not isinstance(first, Tensor):
            first = first[0]
        with torch.cuda.device_of(first):
            return launch(*args, **kwargs)

    return run
