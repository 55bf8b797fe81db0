"""Seconds by stage, on the GPU's own clock where there is one."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch


class Clock:
    """Seconds by stage, on the GPU's clock or, without a GPU, the host's. Time in a nested stage counts only there.

    Parameters
    ----------
    devices
        The devices that compute. A single GPU's own time counts; several have no common time, so the host's does.
    """

    def __init__(self, devices: Collection[torch.device] = ()):
        self._on_gpu = len(devices) == 1 and next(iter(devices)).type == "cuda"
        self._spans: list[_Span] = []
        self._current: _Span | None = None

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time within this context to a stage."""
        span = _Span(stage, outer=self._current, start=self._now())
        self._spans.append(span)
        self._current = span
        yield
        span.end = self._now()
        self._current = span.outer

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage. On a GPU, call it after synchronising."""
        total = {span.stage: 0.0 for span in self._spans}
        for span in self._spans:
            length = span.start.elapsed_time(span.end) / 1e3 if self._on_gpu else span.end - span.start
            total[span.stage] += length
            if span.outer is not None:
                total[span.outer.stage] -= length
        return total

    def _now(self) -> Any:
        if not self._on_gpu:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass
class _Span:
    """One stretch of a stage, from one event or second to another."""

    stage: str
    outer: "_Span | None"
    start: Any
    end: Any = None
