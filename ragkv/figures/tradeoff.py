"""Accuracy over cost."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from ragkv.figures.accuracy import AXIS, at_several_ratios, best_first, scores_over
from ragkv.figures.style import REFERENCE, WIDTH, legend_below, looks, styled


@styled
def frontier(summary: pd.DataFrame, title: str) -> Figure:
    """Accuracy over three costs, a panel each: the share recomputed, TTFT, and the bytes read from the store.

    Parameters
    ----------
    summary
        As `ragkv.results.frontier.costs` returns it.
    """
    figure = Figure(figsize=(WIDTH, 3.6))
    panels: list = list(figure.subplots(1, 3, sharey=True))
    curves = at_several_ratios(summary)
    best = summary.loc[summary.groupby("method", sort=False)["score"].idxmax()]
    with_curve, by_bytes = best_first(curves), _compared_by_bytes(summary)
    styles = looks([*with_curve, *by_bytes])
    curve_styles = {method: styles[method] for method in with_curve}
    byte_styles = {method: styles[method] for method in by_bytes}
    scores_over(panels[0], curves, curve_styles, curves["share"] * 1e2, AXIS)
    scores_over(panels[1], curves, curve_styles, curves["ttft"] * 1e3, "median TTFT (ms)")
    scores_over(panels[2], best, byte_styles, best["stored_bytes"] / 1e3, "read from the store (kB)")
    for full in summary.loc[summary["method"] == "full_prefill", "score"]:
        for panel in panels:
            panel.axhline(full, linestyle="--", **REFERENCE)
    panels[0].set(ylabel="accuracy, 95 % interval", ylim=(-0.03, 1.05), xscale="log")
    panels[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].xaxis.set_major_formatter("{x:g}")
    panels[0].xaxis.set_minor_formatter(NullFormatter())
    legend_below(figure, [Line2D([], [], label=method, **style) for method, style in styles.items()], columns=4)
    figure.suptitle(title)
    return figure


def _compared_by_bytes(summary: pd.DataFrame) -> list[str]:
    """The methods that read less than others from the store, behind the best three of those that read the most."""
    most = summary["stored_bytes"].max()
    less = summary.loc[(summary["stored_bytes"] > 0) & (summary["stored_bytes"] < most), "method"]
    same = summary[summary["stored_bytes"] == most].sort_values("score", ascending=False, kind="stable")["method"]
    return [*same.unique()[:3], *less.unique()]
