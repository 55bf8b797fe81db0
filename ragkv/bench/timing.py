"""Functions timed in turns, so that whatever else happens on the machine affects all of them alike."""

from collections.abc import Callable
from statistics import quantiles
from time import perf_counter

import pandas as pd


def nothing() -> None:
    """For a run that needs no preparation."""


def measure(
    runs: dict[str, Callable[[], object]], repeats: int, before: Callable[[], object] = nothing
) -> pd.DataFrame:
    """Time each function `repeats` times, in turns, after one call each that is not timed.

    Parameters
    ----------
    before
        Called before each run, untimed.

    Returns
    -------
    DataFrame
        ``p20, p50, p80`` in milliseconds, and ``speed-up`` over the first function, by medians; indexed by name.
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
    rows = {}
    for name, values in times.items():
        tenths = quantiles(values, n=10, method="inclusive")
        rows[name] = {"p20": tenths[1], "p50": tenths[4], "p80": tenths[7]}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["speed-up"] = table["p50"].iloc[0] / table["p50"]
    return table
