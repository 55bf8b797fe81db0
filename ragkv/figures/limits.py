"""How near a measurement comes to what the machine can do."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ragkv.figures.latency import bench_names
from ragkv.figures.style import REFERENCE, WIDTH, Look, check_columns, legend_below, lengths_across, looks, styled

ON_GPU = ("", "cuda")  # tiers that load nothing


@styled
def roofline(rows: pd.DataFrame, ceilings: Mapping[str, float], title: str) -> Figure:
    """Arithmetic intensity against the speed reached, under the two ceilings; markers grow with the prompt's length.

    The intensity is the operations that a prefill needs over the bytes that must move through the GPU's memory, the
    speed the same operations over the median TTFT. Hollow markers are prefills whose keys and values come from outside
    the GPU: loading them is a third limit, which has no line here.

    Parameters
    ----------
    rows
        As `ragkv.bench.prefills.prefill_rows` gives them.
    ceilings
        As `ragkv.bench.parts.ceilings` gives them: ``tflops`` and ``memory_gbs``.

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
    axes, shown = figure.subplots(), looks(rows["name"])
    for (name, tier), points in rows.groupby(["name", "tier"], sort=False):
        colour, marker = shown[name]["color"], shown[name]["marker"]
        style: Look = {"marker": marker, "edgecolors": colour, "facecolors": colour if tier in ON_GPU else "white"}
        axes.plot(points["intensity"], points["tflops"], color=colour, linewidth=0.5)
        axes.scatter(points["intensity"], points["tflops"], s=points["tokens"].map(sizes), zorder=3, **style)
    _roof(axes, ceilings, rows["intensity"])
    axes.set(xscale="log", yscale="log", title=title)
    axes.set(xlabel="operations per byte moved in the GPU's memory", ylabel="TFLOP/s reached")
    axes.grid()
    methods = [Line2D([], [], linestyle="", label=name, **style) for name, style in shown.items()]
    dots: Look = {"color": "#555555", "marker": "o", "linestyle": ""}
    lengths = [Line2D([], [], markersize=size**0.5, label=f"{t:,} tokens", **dots) for t, size in sizes.items()]
    outside = [Line2D([], [], markerfacecolor="white", label="from outside the GPU", **dots)]
    legend_below(figure, methods + lengths + (outside if set(rows["tier"]) - set(ON_GPU) else []), columns=4)
    return figure


def _roof(axes: Axes, ceilings: Mapping[str, float], intensity: pd.Series) -> None:
    """The memory's ceiling up to where it meets that of matrix products."""
    speed, bandwidth = ceilings["tflops"], ceilings["memory_gbs"] / 1e3  # TFLOP/s, TB/s
    ridge = speed / bandwidth
    low, high = min(intensity.min(), ridge) / 2, max(intensity.max(), ridge) * 2
    axes.plot([low, ridge, high], [low * bandwidth, speed, speed], **REFERENCE)
    axes.annotate(
        f"matrix products, {speed:.0f} TFLOP/s", (high, speed), (0, 3), textcoords="offset points", ha="right"
    )
    half = (low * ridge) ** 0.5
    text = f"memory, {1e3 * bandwidth:,.0f} GB/s"
    axes.annotate(text, (half, half * bandwidth), (-4, 4), textcoords="offset points", ha="right")


@styled
def attention_speed(rows: pd.DataFrame, ceiling: float, title: str) -> Figure:
    """Each attention backend's useful operations per second over the keys, under those of a matrix product.

    Parameters
    ----------
    rows
        As `ragkv.bench.parts.attention_rows` gives them.
    ceiling
        What the machine reaches in matrix products, TFLOP/s.
    """
    figure = Figure(figsize=(WIDTH, 3.0))
    axes, shown = figure.subplots(), looks(rows["backend"])
    for backend, points in rows.groupby("backend", sort=False):
        axes.plot(points["tokens"], points["tflops"], label=backend, **shown[backend])
    axes.axhline(ceiling, linestyle="--", label="matrix product", **REFERENCE)
    axes.set(xlabel="keys", ylabel="useful TFLOP/s", title=title, ylim=(0, None))
    lengths_across(axes, rows["tokens"])
    figure.legend(loc="outside right center")
    return figure
