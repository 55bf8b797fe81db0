"""How close measurements come to what the machine can do."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ragkv.costs.records import ON_GPU
from ragkv.figures.latency import bench_names
from ragkv.figures.style import (
    REFERENCE,
    WIDTH,
    Look,
    check_columns,
    legend_below,
    lengths_across,
    looks,
    method_lines,
    styled,
)


@styled
def roofline(rows: pd.DataFrame, ceilings: Mapping[str, float], title: str) -> Figure:
    """The speed that prefills reach over their arithmetic intensity, under the machine's two ceilings.

    Speed is the operations that a prefill needs over its median TTFT, intensity the same operations over the bytes that
    must move through the GPU's memory. A thin line joins prefills of one method and setting. Larger markers are longer
    prompts. Hollow markers are prefills whose keys and values come from outside the GPU: loading them is a third limit,
    which has no line here.

    Parameters
    ----------
    rows
        As `ragkv.bench.prefills.prefill_rows` returns them.
    ceilings
        As `ragkv.bench.parts.ceilings` returns them: ``tflops`` and ``memory_gbs``.

    Raises
    ------
    ValueError
        A column is missing, see `check_columns`.
    """
    check_columns(rows, "flop", "bytes", "p50")
    rows = rows.assign(name=bench_names(rows), intensity=rows["flop"] / rows["bytes"])
    rows["tflops"] = rows["flop"] / rows["p50"] / 1e9
    sizes = {tokens: 10.0 * 2**place for place, tokens in enumerate(sorted(rows["tokens"].unique()))}  # points^2
    figure = Figure(figsize=(WIDTH, 4.2))
    axes = figure.subplots()
    styles = looks(rows["selector"])
    for (selector, _, tier), points in rows.groupby(["selector", "name", "tier"], sort=False):
        colour = styles[selector]["color"]
        fill = colour if tier in ON_GPU else "white"
        style: Look = {"marker": styles[selector]["marker"], "edgecolors": colour, "facecolors": fill}
        axes.plot(points["intensity"], points["tflops"], color=colour, linewidth=0.5)
        axes.scatter(points["intensity"], points["tflops"], s=points["tokens"].map(sizes), zorder=3, **style)
    _roof(axes, ceilings, rows["intensity"])
    axes.set(xscale="log", yscale="log", title=title)
    axes.set(xlabel="operations per byte moved in the GPU's memory", ylabel="TFLOP/s reached")
    axes.grid()
    handles = method_lines({selector: style | {"linestyle": ""} for selector, style in styles.items()})
    dots: Look = {"color": "#555555", "marker": "o", "linestyle": ""}
    for tokens, size in sizes.items():
        handles.append(Line2D([], [], markersize=size**0.5, label=f"{tokens:,} tokens", **dots))
    if set(rows["tier"]) - set(ON_GPU):
        handles.append(Line2D([], [], markerfacecolor="white", label="from outside the GPU", **dots))
    legend_below(figure, handles)
    return figure


def _roof(axes: Axes, ceilings: Mapping[str, float], intensity: pd.Series) -> None:
    """Draw the memory's ceiling up to where it meets that of matrix products, and the latter from there on."""
    speed, bandwidth = ceilings["tflops"], ceilings["memory_gbs"] / 1e3  # TFLOP/s, TB/s
    ridge = speed / bandwidth
    low, high = min(intensity.min(), ridge) / 2, max(intensity.max(), ridge) * 2
    axes.plot([low, ridge, high], [low * bandwidth, speed, speed], **REFERENCE)
    axes.annotate(
        f"matrix products, {speed:.0f} TFLOP/s", (high, speed), (0, 3), textcoords="offset points", ha="right"
    )
    below = low**0.25 * ridge**0.75
    text = f"memory, {1e3 * bandwidth:,.0f} GB/s"
    axes.annotate(text, (below, below * bandwidth), (-6, 2), textcoords="offset points", ha="right")


@styled
def attention_speed(rows: pd.DataFrame, ceiling: float, title: str) -> Figure:
    """Useful operations per second of each attention backend over the number of keys, under the machine's ceiling.

    Parameters
    ----------
    rows
        As `ragkv.bench.parts.attention_rows` returns them.
    ceiling
        The machine's speed in matrix products, in TFLOP/s.
    """
    figure = Figure(figsize=(WIDTH, 3.0))
    axes = figure.subplots()
    styles = looks(rows["backend"])
    for backend, points in rows.groupby("backend", sort=False):
        axes.plot(points["tokens"], points["tflops"], label=backend, **styles[backend])
    axes.axhline(ceiling, linestyle="--", label="matrix product", **REFERENCE)
    axes.set(xlabel="keys", ylabel="useful TFLOP/s", title=title, ylim=(0, None))
    lengths_across(axes, rows["tokens"])
    figure.legend(loc="outside right center")
    return figure
