"""Benchmarks by name: each is the parameters that a profile gives it, and makes its tasks' examples from them."""

from ragkv.benchmarks.base import Benchmark, Example, Task, TaskParameters
from ragkv.benchmarks.longbench import LongBench
from ragkv.benchmarks.needle import Needle
from ragkv.benchmarks.ruler import Ruler

__all__ = ["BENCHMARKS", "Benchmark", "Example", "Task", "TaskParameters"]

BENCHMARKS: dict[str, type[Benchmark]] = {"longbench": LongBench, "needle": Needle, "ruler": Ruler}
