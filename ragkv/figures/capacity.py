"""Figures of a deployment: predictions beside measurements, the bandwidth that pays off, a growing corpus."""

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from ragkv.figures.latency import FROM
from ragkv.figures.style import (
    FILLS,
    REFERENCE,
    WIDTH,
    Look,
    baseline,
    legend_below,
    lengths_across,
    looks,
    method_lines,
    shades_of,
    styled,
)

SHAPES = "osD^vP"  # markers of ratios


@styled
def predicted_over_measured(rows: pd.DataFrame, title: str) -> Figure:
    """Predicted TTFT over the measured one, with each selector's colour and marker, filled by tier.

    Parameters
    ----------
    rows
        As `ragkv.costs.roofline.check` returns them.
    """
    figure = Figure(figsize=(WIDTH, 4.4))
    axes = figure.subplots()
    tiers = [tier for tier in rows["tier"].unique() if tier]  # full prefills load nothing
    styles = looks(rows["selector"])
    fills = {tier: ("full", *FILLS)[number % (1 + len(FILLS))] for number, tier in enumerate(tiers)}
    for (tier, selector), points in rows.groupby(["tier", "selector"], sort=False):
        style: Look = styles[selector] | {"linestyle": "", "fillstyle": fills.get(tier, "full")}
        axes.plot(points["measured"], points["predicted"], **style)
    handles = method_lines({selector: style | {"linestyle": ""} for selector, style in styles.items()})
    dot: Look = {"color": "#555555", "marker": "o", "linestyle": ""}
    for tier in tiers:
        handles.append(Line2D([], [], label=f"from {FROM.get(tier, tier)}", **dot | {"fillstyle": fills[tier]}))
    handles.append(Line2D([], [], color="#DDDDDD", linewidth=6, label="within 10 %"))
    times = rows[["measured", "predicted"]]
    ends = [times.min().min() * 0.9, times.max().max() * 1.1]
    axes.plot(ends, ends, **REFERENCE)
    axes.fill_between(ends, [0.9 * end for end in ends], [1.1 * end for end in ends], color="#DDDDDD", zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="measured TTFT (ms)", ylabel="predicted TTFT (ms)", title=title)
    axes.grid()
    legend_below(figure, handles)
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
    shades = shades_of(rows["ratio"].nunique())
    for number, (ratio, points) in enumerate(rows.groupby("ratio")):
        marker = SHAPES[number % len(SHAPES)]
        label = f"{ratio:.0%} recomputed"
        axes.plot(points["tokens"], points["gbs"], label=label, color=shades[number], marker=marker)
    for name, gbs in tiers.items():
        if math.isfinite(gbs):
            axes.axhline(gbs, linestyle="--", **REFERENCE)
            axes.annotate(f" {name}", (1, gbs), xycoords=("axes fraction", "data"), ha="left", va="center")
    axes.set(yscale="log", xlabel="prompt (tokens)", ylabel="bandwidth to break even (GB/s)", title=title)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    lengths_across(axes, rows["tokens"])
    figure.legend(loc="outside lower center", ncols=5)
    return figure


@styled
def over_corpus(rows: pd.DataFrame, title: str) -> Figure:
    """Where requested chunks come from, TTFT and GPUs, over the size of the corpus; full prefills are dashed.

    Parameters
    ----------
    rows
        As `ragkv.costs.capacity.by_corpus` returns them.
    """
    figure = Figure(figsize=(WIDTH, 2.6))
    origin, times, gpus = figure.subplots(1, 3)
    names = [name for name in rows if name.startswith("from ")]
    areas = origin.stackplot(rows["chunks"], (rows[names] * 100).T, labels=names, colors=shades_of(len(names)))
    origin.set(ylabel="requested chunks (%)", ylim=(0, 100))
    for panel, fused, full, name in ((times, "ttft", "full_ttft", "TTFT (ms)"), (gpus, "gpus", "full_gpus", "GPUs")):
        panel.plot(rows["chunks"], rows[fused], color="#222222", marker="o", label="fused")
        panel.plot(rows["chunks"], rows[full], label="full prefill", **baseline("full_prefill"))
        panel.set(ylabel=name, ylim=(0, None))
    figure.legend(handles=[*areas, *gpus.lines], loc="outside lower center", ncols=3)
    for panel in (origin, times, gpus):
        panel.set(xscale="log", xlabel="chunks in the corpus")
        panel.grid()
    figure.suptitle(title)
    return figure
