"""Benchmarks by name, and their tasks."""

from ragkv.benchmarks import small
from ragkv.benchmarks.base import Example, Task, build_prompt, evidence_tokens

__all__ = ["BENCHMARKS", "Example", "Task", "build_prompt", "evidence_tokens", "get_task"]

BENCHMARKS: dict[str, dict[str, Task]] = {"small": small.TASKS}


def get_task(benchmark: str, task: str) -> Task:
    """A task by name.

    Raises
    ------
    ValueError
        Unknown benchmark or task; the message lists those that exist.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"unknown benchmark {benchmark!r}: choose one of {', '.join(BENCHMARKS)}")
    tasks = BENCHMARKS[benchmark]
    if task not in tasks:
        raise ValueError(f"benchmark {benchmark!r} has no task {task!r}: choose one of {', '.join(tasks)}")
    return tasks[task]
