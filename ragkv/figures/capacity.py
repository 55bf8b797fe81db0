"""Figures of a deployment: predictions beside measurements, the bandwidth that pays off, a growing corpus."""

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ragkv.figures.style import COLOURS, REFERENCE, WIDTH, lengths_across, look, looks, styled


@styled
def predicted_over_measured(rows: pd.DataFrame, title: str) -> Figure:
    """Predicted TTFT over the measured one, a colour for each tier and a marker for each selector.

    Parameters
    ----------
    rows
        As `ragkv.costs.roofline.check` returns them.
    """
    figure = Figure(figsize=(WIDTH, 4.4))
    axes = figure.subplots()
    tiers = list(rows["tier"].unique())
    styles = looks(rows["selector"])
    for (tier, selector), points in rows.groupby(["tier", "selector"], sort=False):
        style = {"color": COLOURS[tiers.index(tier) % len(COLOURS)], "marker": styles[selector]["marker"]}
        name = f"{selector}, {tier}" if tier else selector
        axes.plot(points["measured"], points["predicted"], linestyle="", label=name, **style)
    times = rows[["measured", "predicted"]]
    ends = [times.min().min() * 0.9, times.max().max() * 1.1]
    axes.plot(ends, ends, **REFERENCE)
    axes.fill_between(ends, [0.9 * end for end in ends], [1.1 * end for end in ends], color="#DDDDDD", zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="measured TTFT (ms)", ylabel="predicted TTFT (ms)", title=title)
    axes.grid()
    figure.legend(loc="outside right center", title="band: 10 %")
    return figure


@styled
def break_even_over_length(rows: pd.DataFrame, tiers: Mapping[str, float], title: str) -> Figure:
    """The bandwidth above which loading pays off, over the prompt's length, beside the tiers' own bandwidths.

    Parameters
    ----------
    rows
        As `ragkv.costs.capacity.break_evens` returns them, for one model; each ratio gets a line.
    tiers
        Bandwidths by name, in 1e9 bytes a second; infinite ones are not drawn.
    """
    figure = Figure(figsize=(WIDTH, 4))
    axes = figure.subplots()
    for index, (ratio, points) in enumerate(rows.groupby("ratio")):
        axes.plot(points["tokens"], points["gbs"], label=f"{ratio:.0%} recomputed", **look(index))
    for name, gbs in tiers.items():
        if math.isfinite(gbs):
            axes.axhline(gbs, linestyle="--", **REFERENCE)
            axes.annotate(name, (1, gbs), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axes.set(yscale="log", xlabel="prompt (tokens)", ylabel="bandwidth to break even (GB/s)", title=title)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    lengths_across(axes, rows["tokens"])
    figure.legend(loc="outside right center")
    return figure


@styled
def over_corpus(rows: pd.DataFrame, title: str) -> Figure:
    """Where requested chunks come from, TTFT and GPUs, over the size of the corpus; full prefills are dashed.

    Parameters
    ----------
    rows
        As `ragkv.costs.capacity.by_corpus` returns them.
    """
    figure = Figure(figsize=(WIDTH, 2.8))
    origin, times, gpus = figure.subplots(1, 3)
    names = [name for name in rows if name.startswith("from ")]
    shades = ["#0072B2", "#56B4E9", "#F0E442", "#E69F00", "#D55E00"]
    origin.stackplot(rows["chunks"], (rows[names] * 100).T, labels=names, colors=shades)
    origin.set(ylabel="requested chunks (%)", ylim=(0, 100))
    origin.legend(loc="lower left", frameon=True)
    for panel, fused, full, name in ((times, "ttft", "full_ttft", "TTFT (ms)"), (gpus, "gpus", "full_gpus", "GPUs")):
        panel.plot(rows["chunks"], rows[fused], color=COLOURS[5], marker="o", label="fused")
        panel.plot(rows["chunks"], rows[full], linestyle="--", label="full prefill", **REFERENCE)
        panel.set(ylabel=name, ylim=(0, None))
        panel.legend()
    for panel in (origin, times, gpus):
        panel.set(xscale="log", xlabel="chunks in the corpus")
        panel.grid()
    figure.suptitle(title)
    return figure
