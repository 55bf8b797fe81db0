"""What all figures have in common: sizes, fonts, and the colour and marker of each method."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.style import context
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator

P = ParamSpec("P")
Look = dict[str, Any]  # keyword arguments of matplotlib

WIDTH = 7.0  # inches: the width of a page's text
POINTS = 72.0  # of an inch
MOST_COLUMNS = 5  # of a legend
# The colour and marker of every built-in method, in all figures. Eight colours are Okabe and Ito's, the others Paul
# Tol's: both for the colour-blind.
METHODS = {
    "a3": ("#000000", "o"),
    "probe": ("#E69F00", "s"),
    "cacheblend": ("#56B4E9", "D"),
    "epic": ("#009E73", "^"),
    "surprisal": ("#D55E00", "v"),
    "random": ("#0072B2", "P"),
    "full_reuse": ("#CC79A7", "*"),
    "full_prefill": ("#777777", "X"),
    "transformers": ("#332288", "p"),
    "a3_blend": ("#999933", "<"),
    "tail": ("#44AA99", ">"),
    "cat": ("#661100", "h"),
}
OTHERS = ("#AA4499", "#117733", "#8C564B", "#7B7BDB", "#2F4F4F")  # colours of other methods
OTHER_MARKERS = "d8HpshD<"  # 8 markers and 5 colours give 40 different pairs
EVIDENCE = "#C2185B"  # not the colour of any method
CONTEXTS: dict[str, Look] = {  # what a method's line and marker have with each context
    "behind the prefix": {"linestyle": "--", "fillstyle": "none"},
    "behind a learned context": {"linestyle": "-.", "fillstyle": "bottom"},
}
SETTINGS = (":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 3)))  # a method's lines with other settings, in turn
FILLS = ("none", "left", "right", "top")  # markers of other settings, in turn
BASELINES = {"full_prefill": "--", "full_reuse": ":"}  # methods without a ratio: a line across
REFERENCE: Look = {"color": "#555555", "linewidth": 1.0}  # lines that stand for no method
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
    "legend.handlelength": 3.0,  # in units of the font's size, as all that follow; long enough to tell dashes apart
    "legend.handletextpad": 0.8,
    "legend.columnspacing": 1.5,
    "legend.borderpad": 0.4,
    "legend.borderaxespad": 0.5,
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


def looks(names: Iterable[str]) -> dict[str, Look]:
    """The colour, marker and line of each method, the same whatever their order.

    Built-in methods look the same in all figures. Methods of one's own take the other colours, in alphabetical order.
    A method with a context or another setting (``"a3 behind the prefix"``, ``"a3 15%"``) has the plain method's colour
    and marker, but its line is broken and its marker is hollow or half filled. If the plain method is not in the
    figure, the first setting that is not a context looks like the plain method.
    """
    shown = list(dict.fromkeys(names))
    others = sorted(name for name in shown if _method(name) not in METHODS)
    found = {name: _other(number) for number, name in enumerate(others)}
    settings: dict[str, list[str]] = {}  # by method, without contexts
    for name in sorted(shown):
        method, setting = _method(name), _setting(name)
        if method not in METHODS:
            continue
        if setting in CONTEXTS:
            found[name] = look(method) | CONTEXTS[setting]
        elif setting:
            settings.setdefault(method, []).append(name)
        else:
            found[name] = look(method)
    for method, in_turn in settings.items():
        if method not in shown:
            found[in_turn.pop(0)] = look(method)
        for number, name in enumerate(in_turn):
            found[name] = look(method) | _of_setting(number)
    return {name: found[name] for name in shown}


def look(method: str) -> Look:
    """The colour and marker of a built-in method."""
    colour, marker = METHODS[method]
    return {"color": colour, "marker": marker}


def baseline(method: str) -> Look:
    """The line across a figure that stands for a method without a ratio: its colour, dashed or dotted."""
    return {"color": look(method)["color"], "linestyle": BASELINES[method], "linewidth": 1.2}


def _method(name: str) -> str:
    """The built-in method that a name begins with; the whole name of any other method."""
    first = name.split(" ")[0]
    return first if first in METHODS else name


def _setting(name: str) -> str:
    return name.removeprefix(_method(name)).strip()


def _of_setting(number: int) -> Look:
    return {"linestyle": SETTINGS[number % len(SETTINGS)], "fillstyle": FILLS[number % len(FILLS)]}


def _other(number: int) -> Look:
    return {"color": OTHERS[number % len(OTHERS)], "marker": OTHER_MARKERS[number % len(OTHER_MARKERS)]}


def label(method: str, ratio: float, share: float | None = None) -> str:
    """The name of a method at a ratio, for figures and tables.

    Parameters
    ----------
    share
        What was really recomputed; it is added in parentheses where it is more than a tenth off the ratio.
    """
    if method in BASELINES:
        return method
    name = f"{method} {percent(ratio)}"
    return name if share is None or abs(share - ratio) <= 0.1 * ratio else f"{name} ({percent(share)})"


def percent(share: float) -> str:
    """A share with up to three digits: ``"15%"``, ``"0.781%"``."""
    return f"{100 * share:.3g}%"


def legend_below(figure: Figure, handles: Iterable[Line2D]) -> None:
    """One legend for all panels, below them, in as many columns as fit; the figure grows by its height."""
    lines = list(handles)
    columns = _columns_that_fit([str(line.get_label()) for line in lines], figure.get_figwidth())
    rows = -(-len(lines) // columns)
    figure.set_figheight(figure.get_figheight() + 0.16 * rows)
    figure.legend(handles=lines, loc="outside lower center", ncols=columns)


def _columns_that_fit(labels: Sequence[str], width: float) -> int:
    """The largest number of columns of a legend with these labels that fit into a width in inches."""
    em = STYLE["legend.fontsize"] / POINTS
    line = STYLE["legend.handlelength"] + STYLE["legend.handletextpad"]
    margins = 2 * (STYLE["legend.borderpad"] + STYLE["legend.borderaxespad"])
    widths = [_text_width(label) for label in labels]
    for columns in range(min(MOST_COLUMNS, len(labels)), 1, -1):
        texts = sum(column.max() for column in np.array_split(widths, columns))  # as matplotlib divides them
        spaces = columns * line + (columns - 1) * STYLE["legend.columnspacing"] + margins
        if texts + em * spaces <= width:
            return columns
    return 1


def _text_width(text: str) -> float:
    """The width of a legend's label in inches."""
    font = FontProperties(family=STYLE["font.family"], size=STYLE["legend.fontsize"])
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return width / POINTS


def shades_of(count: int) -> list[str]:
    """Colours for things in an order, such as ratios or tiers, from dark to light."""
    return [to_hex(colormaps["cividis"](0.9 * place / max(1, count - 1))) for place in range(count)]


def method_lines(styles: Mapping[str, Look]) -> list[Line2D]:
    """What a legend shows of methods."""
    return [Line2D([], [], label=method, **style) for method, style in styles.items()]


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
