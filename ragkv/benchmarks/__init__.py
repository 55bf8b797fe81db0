"""Benchmarks by name. Each is a subclass of `Benchmark` in a file of its own, decorated with ``@register("name")``."""

from ragkv.benchmarks.base import BENCHMARKS, Benchmark, Example, Task, TaskParameters, register
from ragkv.benchmarks.longbench import LongBench
from ragkv.benchmarks.needle import Needle
from ragkv.benchmarks.ruler import Ruler

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Example",
    "LongBench",
    "Needle",
    "Ruler",
    "Task",
    "TaskParameters",
    "register",
]
