"""The accuracy of answers, by method and by how much is recomputed."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ragkv.figures.style import (
    BASELINES,
    WIDTH,
    Look,
    baseline,
    label,
    legend_below,
    looks,
    method_lines,
    shares_across,
    styled,
)
from ragkv.results.comparison import summarise


@styled
def accuracy_over_share(rows: pd.DataFrame, title: str) -> Figure:
    """Mean score over the share of document tokens that was really recomputed: a line per method, 95 % intervals."""
    figure = Figure(figsize=(WIDTH, 3.2))
    axes = figure.subplots()
    summary = summarise(rows)
    curves = without_baselines(summary)
    styles = looks(best_first(curves))
    lines = method_lines(styles)
    for method in BASELINES:
        for score in summary.loc[summary["method"] == method, "score"]:
            axes.axhline(score, **baseline(method))
            lines.append(Line2D([], [], label=method, **baseline(method)))
    lines_over(axes, curves, styles, curves["share"] * 100)
    shares_across(axes)
    axes.set(ylabel="accuracy, 95 % interval", ylim=(-0.03, 1.05), title=title)
    legend_below(figure, lines)
    return figure


@styled
def score_by_method(summary: pd.DataFrame, title: str) -> Figure:
    """Mean score of each method and ratio with its 95 % interval; a dashed line marks the full prefill's score.

    Parameters
    ----------
    summary
        As `ragkv.results.comparison.summarise` returns it.
    """
    figure = Figure(figsize=(WIDTH, 0.8 + 0.2 * len(summary)))
    axes = figure.subplots()
    styles = looks(summary["method"])
    labels = [label(*key) for key in zip(summary["method"], summary["ratio"], summary["share"], strict=True)]
    for full in summary.loc[summary["method"] == "full_prefill", "score"]:
        axes.axvline(full, **baseline("full_prefill"))
    for row, method in enumerate(summary["method"]):
        point = summary.iloc[[row]]
        whiskers = spread(point, "score", "low", "high")
        axes.errorbar(point["score"], [row], xerr=whiskers, capsize=3, elinewidth=0.9, **styles[method])
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
    """Draw a value with its interval over a cost: a line for each method that has a style, or a single point.

    Methods that are drawn first have wider lines and larger markers, so that they show behind others at the same place.
    """
    for number, (method, style) in enumerate(styles.items()):
        points = table[table["method"] == method].sort_values("ratio")
        behind = 1 - number / max(1, len(styles) - 1)  # 1 for the first method, 0 for the last
        size: Look = {"linewidth": 1.1 + 1.3 * behind, "markersize": 4.0 + 2.5 * behind}
        whiskers: Look = {"yerr": spread(points, value, low, high), "capsize": 2, "elinewidth": 0.7}
        drawn = axes.errorbar(across[points.index], points[value], label=method, **style, **size, **whiskers)
        for part in (*drawn.lines[1], *drawn.lines[2]):
            part.set_alpha(0.5)  # the whiskers of other methods at the same share show through


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
