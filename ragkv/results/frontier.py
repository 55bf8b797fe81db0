"""Accuracy over cost: each method's curve, the area under it, and the prompts that a method gets wrong."""

import numpy as np
import pandas as pd

from ragkv.results.comparison import GROUP, interval, shares, summarise

AREA = ["method", "area", "low", "high"]


def costs(rows: pd.DataFrame) -> pd.DataFrame:
    """`summarise`, with means of the bytes in store and cache."""
    means = rows.groupby(GROUP, sort=False)[["stored_bytes", "cache_tokens", "cache_bytes"]].mean()
    return summarise(rows).merge(means.reset_index(), on=GROUP, sort=False)


def areas(rows: pd.DataFrame, start: str = "full_reuse") -> pd.DataFrame:
    """The area under each method's accuracy over the share that was really recomputed, from plain reuse at 0.

    The curve is linear between two shares, and constant after a method's last one, up to the largest share of all. The
    area is divided by that share, so it is a mean accuracy from 0 to 1.

    Returns
    -------
    DataFrame
        ``method, area, low, high`` (95 % interval, by resampling prompts), best first, of the methods that ran at
        several ratios. Empty if `start` did not run.
    """
    scores = rows.pivot_table(index="prompt", columns=GROUP, values="score", sort=False)
    if start not in scores:
        return pd.DataFrame(columns=AREA)
    reuse = scores[start].iloc[:, 0]
    curves = {method: scores[method].sort_index(axis=1) for method in scores.columns.unique(0) if method != start}
    curves = {method: curve for method, curve in curves.items() if curve.shape[1] > 1}
    recomputed = {method: shares(rows)[method].sort_values(kind="stable") for method in curves}
    widest = max((max(places) for places in recomputed.values()), default=1.0)
    table = []
    for method, curve in curves.items():
        places = recomputed[method]
        curve = curve[places.index]
        heights = np.column_stack([reuse, curve, curve.iloc[:, -1]])  # (prompts, shares)
        area = interval(np.trapezoid(heights, [0.0, *places, widest], axis=1) / widest, "area")
        table.append({"method": method, "area": area["area"], "low": area["area_low"], "high": area["area_high"]})
    return pd.DataFrame(table, columns=AREA).sort_values("area", ascending=False, kind="stable", ignore_index=True)


def failures(rows: pd.DataFrame, method: str, ratio: float, baseline: str = "full_prefill") -> list[str]:
    """The prompts that the baseline answers better than a method at a ratio; none if the baseline did not run."""
    scores = rows.pivot_table(index="prompt", columns=GROUP, values="score", sort=False)
    if baseline not in scores:
        return []
    worse = scores[baseline].iloc[:, 0] > scores[method, ratio]
    return scores.index[worse].tolist()
