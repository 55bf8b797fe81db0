"""Accuracy over cost."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ragkv.figures.accuracy import best_first, lines_over, without_baselines
from ragkv.figures.style import REFERENCE, WIDTH, legend_below, looks, shares_across, styled


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
    curves = without_baselines(summary)
    best = summary.loc[summary.groupby("method", sort=False)["score"].idxmax()]
    reading = best[best["stored_bytes"] > 0]
    styles = looks([*best_first(curves), *best_first(reading)])
    curve_styles = {method: styles[method] for method in best_first(curves)}
    reading_styles = {method: styles[method] for method in best_first(reading)}
    lines_over(panels[0], curves, curve_styles, curves["share"] * 1e2)
    lines_over(panels[1], curves, curve_styles, curves["ttft"] * 1e3)
    lines_over(panels[2], reading, reading_styles, reading["stored_bytes"] / 1e3)
    shares_across(panels[0])
    for panel, cost in zip(panels[1:], ("median TTFT (ms)", "read from the store (kB)"), strict=True):
        panel.set_xlabel(cost)
        panel.grid()
    for full in summary.loc[summary["method"] == "full_prefill", "score"]:
        for panel in panels:
            panel.axhline(full, linestyle="--", **REFERENCE)
    panels[0].set(ylabel="accuracy, 95 % interval", ylim=(-0.03, 1.05))
    legend_below(figure, [Line2D([], [], label=method, **style) for method, style in styles.items()], columns=4)
    figure.suptitle(title)
    return figure
