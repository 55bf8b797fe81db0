"""The accuracy of answers, by method and by how much is recomputed."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ragkv.figures.style import BASELINES, REFERENCE, WIDTH, Look, label, looks, shares_across, styled
from ragkv.results.comparison import summarise


@styled
def accuracy_over_share(rows: pd.DataFrame, title: str) -> Figure:
    """Mean score over the share of document tokens that was really recomputed: a line per method, 95 % intervals."""
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    summary = summarise(rows)
    for method, style in BASELINES.items():
        for score in summary.loc[summary["method"] == method, "score"]:
            axes.axhline(score, linestyle=style, label=method, **REFERENCE)
    curves = without_baselines(summary)
    lines_over(axes, curves, looks(best_first(curves)), curves["share"] * 100)
    shares_across(axes)
    axes.set(ylabel="accuracy, 95 % interval", ylim=(-0.03, 1.05), title=title)
    figure.legend(loc="outside right center")
    return figure


@styled
def score_by_method(summary: pd.DataFrame, title: str) -> Figure:
    """Mean score of each method and ratio with its 95 % interval; the full prefill's score is marked.

    Parameters
    ----------
    summary
        As `ragkv.results.comparison.summarise` returns it.
    """
    figure = Figure(figsize=(WIDTH, 0.8 + 0.2 * len(summary)))
    axes = figure.subplots()
    labels = [label(*key) for key in zip(summary["method"], summary["ratio"], summary["share"], strict=True)]
    whiskers = spread(summary, "score", "low", "high")
    axes.errorbar(summary["score"], range(len(labels)), xerr=whiskers, fmt="ko", ecolor="#777777", capsize=3)
    for full in summary.loc[summary["method"] == "full_prefill", "score"]:
        axes.axvline(full, linestyle="--", **REFERENCE)
    axes.set(yticks=range(len(labels)), yticklabels=labels, xlabel="score, 95 % interval", title=title)
    axes.set_xlim(-0.03, 1.03)
    axes.invert_yaxis()
    axes.grid(axis="x")
    return figure


def lines_over(
    axes: Axes,
    table: pd.DataFrame,
    styles: Mapping[str, Look],
    across: pd.Series,
    value: str = "score",
    low: str = "low",
    high: str = "high",
) -> None:
    """Draw a value with its interval over a cost: a line for each method that has a style, or a single point."""
    for method, style in styles.items():
        points = table[table["method"] == method].sort_values("ratio")
        whiskers: Look = {"yerr": spread(points, value, low, high), "capsize": 2, "elinewidth": 0.7}
        axes.errorbar(across[points.index], points[value], label=method, **style, **whiskers)


def without_baselines(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of methods that are not drawn as lines across the figure."""
    return table[~table["method"].isin(list(BASELINES))]


def best_first(table: pd.DataFrame, value: str = "score") -> list[str]:
    """The methods, the highest mean first."""
    means = table.groupby("method", sort=False)[value].mean()
    return list(means.sort_values(ascending=False, kind="stable").index)


def spread(table: pd.DataFrame, value: str, low: str, high: str) -> list[pd.Series]:
    """The distances of the interval's ends from the value."""
    below = table[value] - table[low]
    above = table[high] - table[value]
    return [below.clip(lower=0), above.clip(lower=0)]  # the mean of a skewed sample may lie beyond its interval
