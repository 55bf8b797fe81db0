"""Which method comes first on some prompts, and which others these prompts do not tell apart from it."""

from collections.abc import Iterable

import pandas as pd

from ragkv.results.comparison import GROUP, interval
from ragkv.results.fidelity import LOWER_IS_BETTER

FEWEST = 10  # prompts: fewer rank nothing

Key = tuple[str, float]  # a method and its ratio


def measure_of(rows: pd.DataFrame) -> str:
    """What methods are ranked by: the divergence from full prefill where it was measured, otherwise the score."""
    return "kl" if "kl" in rows and rows["kl"].notna().any() else "score"


def partial_methods(rows: pd.DataFrame) -> list[Key]:
    """The methods and ratios that recompute less than the whole document, plain reuse among them."""
    shares = rows.groupby(GROUP, sort=False)["share"].mean()
    return [(str(method), float(ratio)) for method, ratio in shares.index[shares < 1]]


def leaders(rows: pd.DataFrame, among: Iterable[Key], measure: str) -> list[Key]:
    """The best of some methods, followed by those that are not told apart from it, the better ones first.

    Methods are compared prompt by prompt, on the prompts that all of them have answered. One is told apart from the
    best if the 95 % bootstrap interval of their mean difference does not contain 0.

    Parameters
    ----------
    rows
        Results as `ragkv.experiment.evaluate` gives them.
    among
        Methods and ratios. Of several that are equally good, the one that recomputes least is the best.
    measure
        The column to compare; smaller values of ``kl``, ``kl_first`` and ``nll`` are better.

    Returns
    -------
    list of (method, ratio)
        Empty with fewer than ten prompts, or without methods.
    """
    table = rows.pivot_table(index="prompt", columns=GROUP, values=measure, sort=False)
    table = table[[key for key in among if key in table.columns]].dropna()
    if len(table) < FEWEST or table.empty:
        return []
    losses = table if measure in LOWER_IS_BETTER else -table
    means = losses.mean().to_frame("loss")
    means["share"] = rows.groupby(GROUP)["share"].mean()
    order = means.sort_values(["loss", "share"], kind="stable").index
    best = order[0]
    behind = {key: interval((losses[key] - losses[best]).to_numpy())["mean_low"] for key in order[1:]}
    return [tuple(best), *(tuple(key) for key, low in behind.items() if low <= 0)]
