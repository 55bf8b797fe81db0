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


@cache
def _starts_early(device: torch.device) -> bool:
    """Whether a GPU can start a kernel before the one in front of it has ended: NVIDIA's can, from Hopper on."""
    return device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device)[0] >= 9


def early_start(states: Tensor, tokens: int) -> dict[str, bool]:
    """Launch options of a kernel that calls `ragkv.kernels.early.wait_for_previous`; `tokens` is what it works on.

    In decoding, kernels take so little time that starting them matters. So where a single token is computed, each one
    starts while the one before it runs, and then waits for its results (programmatic dependent launch).
    """
    early = tokens == 1 and _starts_early(states.device)
    return {"EARLY": True, "launch_pdl": True} if early else {}


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
