"""Speed beside fidelity: how fast a prefill is that recovers a share of the gap."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter

from ragkv.figures.style import REFERENCE, WIDTH, legend_below, looks, method_lines, styled
from ragkv.results.equal_fidelity import LEVELS

TICKS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)


@styled
def speed_over_fidelity(table: pd.DataFrame, title: str) -> Figure:
    """The share of the gap that is recovered over the speed-up, a line for each method through its ratios.

    Parameters
    ----------
    table
        Of `ragkv.results.equal_fidelity.speed_and_fidelity`.
    """
    shown = table[table["method"] != "full_prefill"]
    figure = Figure(figsize=(WIDTH, 3.6))
    axes = figure.subplots()
    for level in LEVELS:
        axes.axhline(100 * level, **REFERENCE, linestyle=":")
    styles = looks(shown["method"])
    for method, points in shown.groupby("method", sort=False):
        in_order = points.sort_values("ratio")
        axes.plot(in_order["speed-up"], 100 * in_order["recovered_kl"], **styles[method])
    axes.set(xscale="log", xlabel="times faster than a full prefill", ylabel="gap recovered (%)", ylim=(0, 102))
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid()
    legend_below(figure, method_lines(styles))
    figure.suptitle(title)
    return figure
