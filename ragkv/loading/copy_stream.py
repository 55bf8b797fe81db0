"""The stream that copies to a GPU run on, beside the one that computes."""

from contextlib import AbstractContextManager
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, device


class CopyStream(Protocol):
    """A stream beside the current one, which computes. `GpuStream` is the real one."""

    def active(self) -> AbstractContextManager[object]:
        """Within this context, copies and kernels run on this stream."""

    def wait_for_computation(self) -> None:
        """What this stream is given from now on runs after all that the computing stream was given so far."""

    def record(self) -> object:
        """An event that is reached once this stream has done all that it was given so far."""

    def computation_waits(self, event: object) -> None:
        """What the computing stream is given from now on runs after that event."""

    def uses(self, memory: Tensor) -> None:
        """Memory of the computing stream is used here, too: when it is freed, this stream may not be done with it."""


class GpuStream:
    """A CUDA stream for copies to a GPU."""

    def __init__(self, gpu: device):
        self._gpu = gpu
        self._stream = torch.cuda.Stream(gpu, priority=-1)

    def active(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def wait_for_computation(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._gpu))

    def record(self) -> torch.cuda.Event:
        return self._stream.record_event()

    def computation_waits(self, event: object) -> None:
        assert isinstance(event, torch.cuda.Event)
        torch.cuda.current_stream(self._gpu).wait_event(event)

    def uses(self, memory: Tensor) -> None:
        memory.record_stream(self._stream)


@cache
def gpu_stream(gpu: device) -> GpuStream:
    """The stream for all copies to a GPU. One is enough, and memory that one prefill used on it serves the next one."""
    return GpuStream(gpu)
