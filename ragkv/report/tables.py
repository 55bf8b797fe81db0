"""Tables of a report: as HTML on the page, and beside it as CSV with all digits and as LaTeX (booktabs)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from ragkv.figures.style import label, percent
from ragkv.results.comparison import GROUP, shares, summarise
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
BREAK = "\u2028"  # a line break within a cell; names cannot contain it
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
    turned
        Show one column per method and ratio instead of one row, so that many tasks fit on a page.
    """
    csv = path.with_name(f"{path.name}.csv")
    tex = path.with_name(f"{path.name}.tex")
    shown = _in_percent(table if shown is None else shown)
    shown = _turned(shown) if turned else _flat(shown)
    write_text(csv, _safe(table).to_csv(float_format="%.4f"))
    comment = " ".join(f"{key} {' '.join(str(value).split())}" for key, value in source.items())  # on one line
    plain = shown.replace(BREAK, " ", regex=True)
    latex = plain.to_latex(index=turned, na_rep="", float_format=TWO_DIGITS, escape=True)
    write_text(tex, f"% {comment}\n{latex}")
    return Table(as_html(shown, index=turned), csv.name, tex.name)


def _safe(table: pd.DataFrame) -> pd.DataFrame:
    """The table with an apostrophe before names that a spreadsheet would take for formulas."""

    def safe(name: object) -> object:
        return f"'{name}" if isinstance(name, str) and name.startswith(FORMULA) else name

    renamed = table.rename(columns=safe)
    renamed.index = table.index.map(lambda key: tuple(map(safe, key)) if isinstance(key, tuple) else safe(key))
    renamed.index.names = table.index.names
    return renamed


def as_html(table: pd.DataFrame, *, index: bool = False) -> Markup:
    """A table's HTML, with all cells and headings escaped."""
    html = table.to_html(index=index, na_rep="", float_format=TWO_DIGITS, border=0)
    return Markup(html.replace(BREAK, "<br>"))


def with_recomputed(table: pd.DataFrame, *results: pd.DataFrame) -> pd.DataFrame:
    """The table with a first column ``recomputed``: the share of the document that each method really recomputed."""
    first = shares(*results).reindex(table.index).rename("recomputed")
    return pd.concat([first, table], axis=1)


def fidelity_tables(fidelity: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tables of what `ragkv.results.fidelity.fidelity_by_method` returns, indexed by method and ratio.

    The first has all its columns. The second, for the page, has each mean and its interval in one cell.
    """
    table = fidelity.rename(columns={"share": "recomputed"}).set_index(GROUP)
    shown = table[["recomputed"]].copy()
    for name, (heading, digits) in SHOWN.items():
        if name in table:
            cells = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
            shown[heading] = [_with_interval(*cell, digits) for cell in cells]
    return table, shown


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
        shown["ratio"] = shown["ratio"].map("{:.0%}".format)
    return shown


def _turned(table: pd.DataFrame) -> pd.DataFrame:
    """One column per method and ratio."""
    turned = table.T
    turned.columns = [label(*key) for key in table.index]
    return turned
