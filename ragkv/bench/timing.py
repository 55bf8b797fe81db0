"""Functions timed in turns, so that what changes on the machine meanwhile meets all of them."""

from collections.abc import Callable
from statistics import quantiles
from time import perf_counter

import pandas as pd


def nothing() -> None:
    """What comes before a run that needs no preparation."""


def measure(
    runs: dict[str, Callable[[], object]], repeats: int, before: Callable[[], object] = nothing
) -> pd.DataFrame:
    """Time each function `repeats` times, in turns, after one call that does not count.

    Parameters
    ----------
    before
        Called before each run, untimed.

    Returns
    -------
    DataFrame
        ``p20, p50, p80`` in milliseconds, and ``speed-up`` of the first over each by the medians; indexed by name.
    """
    for run in runs.values():
        before()
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            before()
            start = perf_counter()
            run()
            times[name].append((perf_counter() - start) * 1e3)
    fifths = {name: quantiles(values, n=10, method="inclusive") for name, values in times.items()}
    table = pd.DataFrame({name: {"p20": q[1], "p50": q[4], "p80": q[7]} for name, q in fifths.items()}).T
    table["speed-up"] = table["p50"].iloc[0] / table["p50"]
    return table
