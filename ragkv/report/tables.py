"""Tables of a report: as HTML on the page, and beside it as CSV with all digits and as LaTeX (booktabs)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from ragkv.figures.style import label, percent
from ragkv.report.render import fill_in
from ragkv.results.comparison import GROUP, shares, summarise
from ragkv.results.fidelity import LOWER_IS_BETTER
from ragkv.results.files import write_text

SHOWN = {  # columns of `ragkv.results.fidelity.fidelity_by_method`: their headings and digits
    "kl_first": ("KL, first token", 3),
    "kl": ("KL, answer", 3),
    "agreement": ("same token", 2),
    "nll": ("NLL", 2),
    "recovered_kl": ("KL gap recovered", 2),
    "recovered_score": ("score gap recovered", 2),
}
TWO_DIGITS = "{:.2f}".format
BREAK = "\n"  # a line break within a cell; names cannot contain it
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what formulas begin with


@dataclass(frozen=True)
class Table:
    """A table as HTML, and the names of its files."""

    html: Markup
    csv: str
    tex: str


def write_table(
    table: pd.DataFrame,
    path: Path,
    source: Mapping[str, object],
    *,
    shown: pd.DataFrame | None = None,
    best: pd.DataFrame | None = None,
    turned: bool = False,
) -> Table:
    """Write a table as ``<path>.csv`` and ``<path>.tex``.

    Parameters
    ----------
    table
        Indexed by method and, optionally, ratio.
    source
        Where the numbers come from. It becomes a comment in the LaTeX file.
    shown
        The same table as the page and LaTeX show it, if it has other columns there than in the CSV file.
    best
        Which cells the page and LaTeX show in bold, see `best_values`; it may lack columns.
    turned
        Show one column per method and ratio instead of one row, so that many tasks fit on a page.
    """
    csv = path.with_name(f"{path.name}.csv")
    tex = path.with_name(f"{path.name}.tex")
    shown = _in_percent(table if shown is None else shown)
    marks = pd.DataFrame(False, shown.index, shown.columns) if best is None else best.reindex_like(shown).eq(True)
    marks = _turned(marks) if turned else marks
    shown = _turned(shown) if turned else _flat(shown)
    write_text(csv, _safe(table).to_csv(float_format="%.4f"))
    comment = " ".join(f"{key} {' '.join(str(value).split())}" for key, value in source.items())  # on one line
    write_text(tex, f"% {comment}\n{_latex(shown, marks, index=turned)}")
    return Table(as_html(shown, marks, index=turned), csv.name, tex.name)


def _latex(table: pd.DataFrame, best: pd.DataFrame, *, index: bool) -> str:
    """A table in LaTeX, with all cells and headings escaped; arguments as for `as_html`."""
    names = np.full((len(table), table.shape[1] - best.shape[1]), "")  # columns such as the method's
    bold = np.hstack([names, np.where(best, "textbf:--rwrap;", "")])  # the command, as pandas writes it
    styler = table.replace(BREAK, " ", regex=True).style
    styler.format(escape="latex", na_rep="", precision=2)
    styler.format_index(escape="latex", axis="index").format_index(escape="latex", axis="columns")
    styler.apply(lambda cells: bold, axis=None)
    if not index:
        styler.hide(axis="index")
    return styler.to_latex(hrules=True)


def _safe(table: pd.DataFrame) -> pd.DataFrame:
    """The table with an apostrophe before names that a spreadsheet would take for formulas."""

    def safe(name: object) -> object:
        return f"'{name}" if isinstance(name, str) and name.startswith(FORMULA) else name

    renamed = table.rename(columns=safe)
    renamed.index = table.index.map(lambda key: tuple(map(safe, key)) if isinstance(key, tuple) else safe(key))
    renamed.index.names = table.index.names
    return renamed


def as_html(table: pd.DataFrame, best: pd.DataFrame | None = None, *, index: bool = False) -> Markup:
    """A table's HTML, with all cells and headings escaped.

    Parameters
    ----------
    best
        Which cells of the last columns are marked, in the same order.
    index
        Whether the table's index is its first column.
    """
    shown = table.reset_index(names="") if index else table
    marks = pd.DataFrame(False, shown.index, shown.columns) if best is None else best
    plain = [False] * (shown.shape[1] - marks.shape[1])  # such as the name of a method
    rows = [
        [(_text(value), mark) for value, mark in zip(values, [*plain, *marked], strict=True)]
        for values, marked in zip(shown.itertuples(index=False), marks.itertuples(index=False), strict=True)
    ]
    return fill_in("table.html.jinja", headings=list(shown.columns), rows=rows, named=index)


def _text(value: object) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else TWO_DIGITS(value)
    return str(value)


def best_values(table: pd.DataFrame, digits: int = 2, lower: Collection[str] = ()) -> pd.DataFrame:
    """Where each column has its best value among methods that recompute only part of the document.

    Parameters
    ----------
    table
        Numbers, indexed by method and, optionally, ratio.
    digits
        That are shown: values that are shown as equal are equal.
    lower
        Columns whose smaller values are better.
    """
    partial = table.index.get_level_values("ratio") < 1 if "ratio" in table.index.names else [True] * len(table)
    values = table.round(digits).where(pd.Series(partial, table.index), axis=0)
    signs = pd.Series([-1 if name in lower else 1 for name in table.columns], table.columns)
    signed = values * signs
    return signed.eq(signed.max()) & signed.notna()


def with_recomputed(table: pd.DataFrame, *results: pd.DataFrame) -> pd.DataFrame:
    """The table with a first column ``recomputed``: the share of the document that each method really recomputed."""
    first = shares(*results).reindex(table.index).rename("recomputed")
    return pd.concat([first, table], axis=1)


def fidelity_tables(fidelity: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Three tables of what `ragkv.results.fidelity.fidelity_by_method` returns, indexed by method and ratio.

    The first has all its columns. The second, for the page, has each mean and its interval in one cell. The third says
    which of these are the best.
    """
    table = fidelity.rename(columns={"share": "recomputed"}).set_index(GROUP)
    shown = table[["recomputed"]].copy()
    best = pd.DataFrame(index=table.index)
    for name, (heading, digits) in SHOWN.items():
        if name in table:
            cells = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
            shown[heading] = [_with_interval(*cell, digits) for cell in cells]
            best[heading] = best_values(table[[name]], digits, LOWER_IS_BETTER)[name]
    return table, shown, best


def _with_interval(value: float, low: float, high: float, digits: int) -> str:
    """A mean and its interval, on a line of its own on the page; the mean alone if there is no interval."""
    if pd.isna(value):
        return ""
    mean = f"{value:.{digits}f}"
    return f"{mean}{BREAK}({low:.{digits}f} … {high:.{digits}f})" if pd.notna(low) else mean


def intervals(rows: pd.DataFrame) -> pd.DataFrame:
    """Each method's score and its difference to full prefill, both with 95 % intervals."""
    table = summarise(rows).set_index(["method", "ratio"])
    shown = {"score": table["score"], "95 %": _range(table, "low", "high")}
    if "difference" in table:
        shown["to full prefill"] = table["difference"]
        shown["95 % of it"] = _range(table, "difference_low", "difference_high")
    return pd.DataFrame(shown)


def times(rows: pd.DataFrame) -> pd.DataFrame:
    """Median TTFT and TPOT in milliseconds by method and ratio, and the speed-up over full prefill."""
    table = summarise(rows).set_index(["method", "ratio"])[["ttft", "tpot"]] * 1e3
    full = table["ttft"].get(("full_prefill", 1.0), float("nan"))
    table.insert(1, "speed-up", full / table["ttft"])
    return table.rename(columns={"ttft": "TTFT (ms)", "tpot": "TPOT (ms)"})


def _range(table: pd.DataFrame, low: str, high: str) -> pd.Series:
    return table[low].map("{:.2f}".format) + " … " + table[high].map("{:.2f}".format)


def _in_percent(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the recomputed share in per cent."""
    return table.assign(recomputed=table["recomputed"].map(percent)) if "recomputed" in table else table


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    """One row per method and ratio, with both as columns."""
    shown = table.reset_index()
    if "ratio" in shown:
        shown["ratio"] = shown["ratio"].map(percent)
    return shown


def _turned(table: pd.DataFrame) -> pd.DataFrame:
    """One column per method and ratio."""
    turned = table.T
    turned.columns = [label(*key) for key in table.index]
    return turned
