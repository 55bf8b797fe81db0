"""Seconds by stage, on the GPU's own clock where there is one."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from time import perf_counter

import torch


class Clock:
    """Seconds by stage, as the GPU lives through them or, without one, the host; a stage within another counts once.

    Parameters
    ----------
    devices
        The GPU whose time counts; of none or several, which have no time in common, it is the host's.
    """

    def __init__(self, devices: Collection[torch.device] = ()):
        self._on_gpu = len(devices) == 1 and next(iter(devices)).type == "cuda"
        self._spans: list[list] = []  # stage, the span around it, start, end
        self._around: int | None = None

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        around, span = self._around, [stage, self._around, self._now(), None]
        self._around = len(self._spans)
        self._spans.append(span)
        yield
        span[3], self._around = self._now(), around

    def seconds(self) -> dict[str, float]:
        """By stage; a GPU must have finished."""
        lengths = [start.elapsed_time(end) / 1e3 if self._on_gpu else end - start for *_, start, end in self._spans]
        total = dict.fromkeys((stage for stage, *_ in self._spans), 0.0)
        for (stage, around, *_), length in zip(self._spans, lengths, strict=True):
            total[stage] += length
            if around is not None:
                total[self._spans[around][0]] -= length
        return total

    def _now(self):  # type: ignore[no-untyped-def]
        if not self._on_gpu:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
