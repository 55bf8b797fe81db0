"""The accuracy of answers, by method and by how much is recomputed."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ragkv.figures.style import BASELINES, REFERENCE, WIDTH, Look, label, looks, styled
from ragkv.results.comparison import summarise

AXIS = "recomputed document tokens (%)"


@styled
def accuracy_over_ratio(rows: pd.DataFrame, title: str) -> Figure:
    """Mean score over the share of document tokens to recompute: a line per method, with 95 % intervals."""
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    summary = summarise(rows)
    for method, style in BASELINES.items():
        for score in summary.loc[summary["method"] == method, "score"]:
            axes.axhline(score, linestyle=style, label=method, **REFERENCE)
    curves = at_several_ratios(summary)
    scores_over(axes, curves, looks(best_first(curves)), curves["ratio"] * 100, AXIS)
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
    labels = [label(*key) for key in zip(summary["method"], summary["ratio"], strict=True)]
    axes.errorbar(summary["score"], range(len(labels)), xerr=_spread(summary), fmt="ko", ecolor="#777777", capsize=3)
    for full in summary.loc[summary["method"] == "full_prefill", "score"]:
        axes.axvline(full, linestyle="--", **REFERENCE)
    axes.set(yticks=range(len(labels)), yticklabels=labels, xlabel="score, 95 % interval", title=title)
    axes.set_xlim(-0.03, 1.03)
    axes.invert_yaxis()
    axes.grid(axis="x")
    return figure


def scores_over(axes: Axes, summary: pd.DataFrame, styles: Mapping[str, Look], cost: pd.Series, axis: str) -> None:
    """Draw scores with their intervals over a cost: a line for each method that has a style."""
    for method, style in styles.items():
        points = summary[summary["method"] == method].sort_values("ratio")
        whiskers: Look = {"yerr": _spread(points), "capsize": 2, "elinewidth": 0.7}
        axes.errorbar(cost[points.index], points["score"], label=method, **style, **whiskers)
    axes.set_xlabel(axis)
    axes.grid()


def at_several_ratios(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows of methods that have a curve."""
    return summary.groupby("method", sort=False).filter(lambda part: len(part) > 1)


def best_first(summary: pd.DataFrame) -> list[str]:
    """The methods, the highest mean score first."""
    means = summary.groupby("method", sort=False)["score"].mean()
    return list(means.sort_values(ascending=False, kind="stable").index)


def _spread(summary: pd.DataFrame) -> list[pd.Series]:
    """The distances of the interval's ends from the score."""
    return [summary["score"] - summary["low"], summary["high"] - summary["score"]]
