"""What all figures have in common: sizes, fonts, and the colour and marker of each method."""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import wraps
from itertools import count
from typing import Any, ParamSpec

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.style import context
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

P = ParamSpec("P")
Look = dict[str, Any]  # keyword arguments of matplotlib

WIDTH = 7.0  # inches: the width of a page's text
# Okabe and Ito's colours for the colour-blind, with grey instead of yellow, which is too pale on paper.
COLOURS = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#999999"]
MARKERS = "osD^vP*X"
BASELINES = {"full_prefill": "--", "full_reuse": ":"}  # methods without a ratio: a line across
REFERENCE: Look = {"color": "#555555", "linewidth": 1.0}  # of lines that methods are compared with
USUAL = ("a3", "probe", "cacheblend", "epic", "surprisal", "random", "full_reuse", "full_prefill", "transformers")
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "figure.titlesize": 9,
    "figure.labelsize": 8,
    "figure.constrained_layout.use": True,
    "grid.alpha": 0.25,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,  # TrueType, so that text can be selected
}
in_style = context(["default", STYLE])  # a decorator: draw in this style, whatever the session's settings are


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A decorator of functions that draw a figure: in this style, and with dollar signs in names as they are."""

    @wraps(draw)
    def drawn(*arguments: P.args, **options: P.kwargs) -> Figure:
        figure = in_style(draw)(*arguments, **options)
        for text in figure.findobj(Text):
            if "$" in text.get_text():  # matplotlib would take what is between two of them for mathematics
                text.set_parse_math(False)
        return figure

    return drawn


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """The colour and marker of each method: the usual ones look the same in all figures, others take what is free.

    A method with a setting (``"a3 15%"``, ``"a3 after the prefix"``) has the colour of the plain method. It also has
    its marker, unless the plain method or another setting is in the same figure: then its own marker, and hollow.
    """
    names = list(dict.fromkeys(methods))
    found: dict[str, Look] = {}
    variants: Counter[str] = Counter()
    for name in sorted(names, key=lambda name: name not in USUAL):  # plain methods first
        method = name.split(" ")[0]
        if method in USUAL:
            found[name] = look(USUAL.index(method), variants[method])
            variants[method] += 1
    free = (place for place in count() if place >= len(USUAL) or USUAL[place] not in variants)
    return {name: found[name] if name in found else look(next(free)) for name in names}


def look(place: int, variant: int = 0) -> Look:
    """The colour and marker number `place`; no two of the first 64 share both. Variants have hollow markers."""
    size = len(COLOURS)
    style: Look = {"color": COLOURS[place % size], "marker": MARKERS[(place + place // size + variant) % size]}
    return style | {"markerfacecolor": "white"} if variant else style


def label(method: str, ratio: float, share: float | None = None) -> str:
    """The name of a method at a ratio, for figures and tables.

    Parameters
    ----------
    share
        What was really recomputed; it is added in parentheses where it is more than a tenth off the ratio.
    """
    if method in BASELINES:
        return method
    name = f"{method} {ratio:.0%}"
    return name if share is None or abs(share - ratio) <= 0.1 * ratio else f"{name} ({percent(share)})"


def percent(share: float) -> str:
    """A share with three digits: ``"15%"``, ``"0.781%"``."""
    return f"{100 * share:.3g}%"


def legend_below(figure: Figure, handles: Iterable[Line2D], columns: int = 5) -> None:
    """One legend for all panels, below them."""
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def shares_across(axes: Axes) -> None:
    """Make the x axis one of recomputed shares, in per cent: it begins at 0, and small shares have room."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)  # linear up to 1 %
    axes.set_xlim(-0.3, 1.1 * axes.get_xlim()[1])
    axes.xaxis.set_major_locator(FixedLocator([0, 1, 2, 5, 10, 20, 50, 100]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("recomputed document tokens (%)")
    axes.grid()


def lengths_across(axes: Axes, tokens: pd.Series) -> None:
    """Make the x axis logarithmic, with ticks at just these lengths."""
    lengths = sorted(tokens.unique())
    axes.set_xscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=30)
    axes.minorticks_off()
    axes.grid()


def check_columns(rows: pd.DataFrame, *columns: str) -> None:
    """Check that results have what a figure shows; those of an older version may lack it.

    Raises
    ------
    ValueError
        Columns are missing or empty; the message names them.
    """
    if missing := [name for name in columns if name not in rows or rows[name].isna().all()]:
        raise ValueError(
            f"these results have no {', '.join(missing)}: they were recorded by an older version, "
            "measure them again with `python -m ragkv.bench --shape ... --out ...`"
        )
