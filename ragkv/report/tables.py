"""Tables of a report: as HTML on the page, and beside it as CSV with all digits and as LaTeX (booktabs)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from ragkv.figures import label
from ragkv.results.comparison import summarise
from ragkv.results.files import write_text

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what formulas begin with


@dataclass(frozen=True)
class Table:
    """A table as HTML, and the names of its files."""

    html: Markup
    csv: str
    tex: str


def write_table(table: pd.DataFrame, path: Path, source: Mapping[str, object], *, turned: bool = False) -> Table:
    """Write a table as ``<path>.csv`` and ``<path>.tex``.

    Parameters
    ----------
    table
        Indexed by method and, optionally, ratio.
    source
        Where the numbers come from. It becomes a comment in the LaTeX file.
    turned
        Show one column per method and ratio instead of one row, so that many tasks fit on a page.
    """
    csv = path.with_name(f"{path.name}.csv")
    tex = path.with_name(f"{path.name}.tex")
    shown = _turned(table) if turned else _flat(table)
    write_text(csv, _safe(table).to_csv(float_format="%.4f"))
    comment = " ".join(f"{key} {' '.join(str(value).split())}" for key, value in source.items())  # on one line
    latex = shown.to_latex(index=turned, na_rep="", float_format="%.2f", escape=True)
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
    return Markup(table.to_html(index=index, na_rep="", float_format="%.2f", border=0))


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
