"""Accuracy over cost."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ragkv.figures.accuracy import best_first, lines_over, without_baselines
from ragkv.figures.style import WIDTH, baseline, legend_below, looks, method_lines, shares_across, styled

WORTH_SHOWING = 1.05  # the largest number of bytes read over the smallest one


@styled
def frontier(summary: pd.DataFrame, title: str) -> Figure:
    """Accuracy over its costs, a panel each: the share recomputed, TTFT, and the bytes read from the store.

    The last panel shows each method at its best ratio. It is left out where all of them read about the same.

    Parameters
    ----------
    summary
        As `ragkv.results.frontier.costs` returns it.
    """
    curves = without_baselines(summary)
    best = summary.loc[summary.groupby("method", sort=False)["score"].idxmax()]
    reading = best[best["stored_bytes"] > 0]
    if reading["stored_bytes"].max() <= WORTH_SHOWING * reading["stored_bytes"].min():
        reading = reading.iloc[:0]
    styles = looks([*best_first(curves), *best_first(reading)])
    curve_styles = {method: styles[method] for method in best_first(curves)}
    reading_styles = {method: styles[method] for method in best_first(reading)}
    figure = Figure(figsize=(WIDTH, 3.0))
    panels: list = list(figure.subplots(1, 3 if len(reading) else 2, sharey=True))
    lines_over(panels[0], curves, curve_styles, curves["share"] * 1e2)
    lines_over(panels[1], curves, curve_styles, curves["ttft"] * 1e3)
    shares_across(panels[0])
    panels[1].set_xlabel("median TTFT (ms)")
    if len(reading):
        lines_over(panels[2], reading, reading_styles, reading["stored_bytes"] / 1e6)
        panels[2].set_xlabel("read from the store (MB)")
    lines = method_lines(styles)
    for full in summary.loc[summary["method"] == "full_prefill", "score"]:
        lines.append(Line2D([], [], label="full_prefill", **baseline("full_prefill")))
        for panel in panels:
            panel.axhline(full, **baseline("full_prefill"))
    for panel in panels[1:]:
        panel.set_xlim(0, None)
        panel.xaxis.set_major_locator(MaxNLocator(6))
        panel.grid()
    panels[0].set(ylabel="accuracy, 95 % interval", ylim=(-0.03, 1.05))
    legend_below(figure, lines)
    figure.suptitle(title)
    return figure
