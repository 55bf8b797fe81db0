"""What all figures have in common: sizes, fonts, and the colour and marker of each method."""

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

    A method with a setting (``"a3 15%"``) looks like the plain method, unless that is in the same figure.
    """
    names = list(dict.fromkeys(methods))
    places: dict[str, int] = {}
    for name in sorted(names, key=lambda name: name not in USUAL):  # plain methods first
        method = name.split(" ")[0]
        if method in USUAL and USUAL.index(method) not in places.values():
            places[name] = USUAL.index(method)
    free = (place for place in count() if place not in places.values())
    return {name: look(places[name] if name in places else next(free)) for name in names}


def look(place: int) -> Look:
    """The colour and marker number `place`; no two of the first 64 share both."""
    size = len(COLOURS)
    return {"color": COLOURS[place % size], "marker": MARKERS[(place + place // size) % size]}


def label(method: str, ratio: float) -> str:
    """The name of a method at a ratio, for figures and tables."""
    return method if method in BASELINES else f"{method} {ratio:.0%}"


def legend_below(figure: Figure, handles: Iterable[Line2D], columns: int = 5) -> None:
    """One legend for all panels, below them."""
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)


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
