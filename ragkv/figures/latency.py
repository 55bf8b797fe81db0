"""The time to the first token: over the prompt's length, and by stage."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ragkv.figures.style import (
    WIDTH,
    Look,
    baseline,
    check_columns,
    label,
    legend_below,
    lengths_across,
    looks,
    method_lines,
    styled,
)
from ragkv.results.comparison import shares

FROM = {"cuda": "the GPU", "pinned": "pinned memory", "page cache": "the page cache", "disk": "the disk"}
STAGES = ("open", "load", "select", "compute")
FULL: Look = {"linestyle": "--"}  # full prefills load nothing
BARS = {  # brightness and hatching of a stage; colours stand for methods
    "open": ("#000000", ""),
    "load": ("#666666", "////"),
    "select": ("#A0A0A0", "xxxx"),
    "compute": ("#CCCCCC", ""),
    "not split": ("#E4E4E4", "...."),
}


def bench_names(rows: pd.DataFrame) -> pd.Series:
    """A name for each of a bench's rows: selector, ratio, hops, and the layer whose stored keys it looks at."""
    columns = rows.reindex(columns=["selector", "ratio", "hops", "keys", "layer"]).astype(object)
    columns = columns.where(columns.notna(), None)
    return pd.Series([_name(*row) for row in columns.itertuples(index=False)], rows.index)


def _name(selector: str, ratio: float, hops: float | None, keys: str | None, layer: float | None) -> str:
    if ratio in (0, 1):
        return selector
    name = f"{selector} {ratio:.0%}"
    if hops:
        name += ", 1 hop" if hops == 1 else f", {hops:g} hops"
    if keys:
        name += f", {keys} keys of layer {layer:g}"
    return name


@styled
def ttft_over_length(rows: pd.DataFrame, title: str) -> Figure:
    """Median TTFT over the prompt's length, a panel for each tier that keys and values come from.

    Full prefills, which load none, are shown dashed in every panel.

    Parameters
    ----------
    rows
        As `ragkv.bench.prefills.prefill_rows` returns them.

    Raises
    ------
    ValueError
        A column is missing, see `check_columns`.
    """
    check_columns(rows, "tokens", "p50")
    rows = rows.assign(name=bench_names(rows))
    tiers = [tier for tier in rows["tier"].unique() if tier]
    styles = looks(rows["name"])
    figure = Figure(figsize=(WIDTH, 3.4))
    panels: list = list(figure.subplots(1, max(1, len(tiers)), sharey=True, squeeze=False).flat)
    for panel, tier in zip(panels, tiers or [""], strict=True):
        in_panel = rows[rows["tier"].isin(["", tier])]
        for (own_tier, name), points in in_panel.groupby(["tier", "name"], sort=False):
            style = styles[name] if own_tier else styles[name] | FULL
            panel.plot(points["tokens"], points["p50"], label=name, **style)
        panel.set(yscale="log", title=f"from {FROM.get(tier, tier)}" if tier else "", xlabel="prompt (tokens)")
        lengths_across(panel, rows["tokens"])
    panels[0].set(ylabel="median TTFT (ms)")
    figure.suptitle(title)
    for name in rows.loc[rows["tier"] == "", "name"].unique():
        styles[name] = styles[name] | FULL
    legend_below(figure, method_lines(styles))
    return figure


@styled
def stages(rows: pd.DataFrame, tokens: int, title: str) -> Figure:
    """TTFT at one prompt length, stacked by stage, a bar per method and tier.

    Parameters
    ----------
    rows
        As `ragkv.bench.prefills.prefill_rows` returns them; a row without stages is drawn as its median.
    tokens
        The prompt's length.

    Raises
    ------
    ValueError
        Columns are missing, or no prompt had this length.
    """
    check_columns(rows, *STAGES)
    selected = rows[rows["tokens"] == tokens]
    if selected.empty:
        raise ValueError(f"no prompt of {tokens} tokens was measured: choose one of {rows['tokens'].unique().tolist()}")
    parts = selected[list(STAGES)].fillna(0.0)
    without_stages = selected[list(STAGES)].isna().all(axis=1)
    parts["not split"] = selected["p50"].where(without_stages, 0.0)
    named = zip(bench_names(selected), selected["tier"], strict=True)
    names = [f"{name}, {tier}" if tier else name for name, tier in named]
    full = selected.loc[selected["selector"] == "full_prefill", "p50"]
    return _stacked(parts.set_axis(names), full, f"{title}, {tokens:,} tokens")


@styled
def ttft_by_method(rows: pd.DataFrame, title: str) -> Figure:
    """Median TTFT of each method and ratio in a benchmark, with its time to load and to select.

    Parameters
    ----------
    rows
        As `ragkv.experiment.evaluation.evaluate` returns them.
    """
    table = rows.groupby(["method", "ratio"], sort=False)[["ttft", "load", "select"]].median() * 1e3
    recomputed = shares(rows)
    parts = table[["load", "select"]].assign(compute=table["ttft"] - table["load"] - table["select"])
    full = table.loc[table.index.get_level_values("method") == "full_prefill", "ttft"]
    names = [label(method, ratio, recomputed[method, ratio]) for method, ratio in table.index]
    return _stacked(parts.set_axis(names), full, title)


def _stacked(parts: pd.DataFrame, full: pd.Series, title: str) -> Figure:
    """Milliseconds by stage, a bar per row; the full prefill's time is a dashed line."""
    figure = Figure(figsize=(WIDTH, 1.1 + 0.19 * len(parts)))
    axes = figure.subplots()
    rows, left = range(len(parts)), np.zeros(len(parts))
    for name in (stage for stage in parts if parts[stage].any()):
        colour, hatch = BARS[name]
        style: Look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0, "height": 0.7}
        axes.barh(rows, parts[name], left=left, label=name, **style)
        left += parts[name].to_numpy()
    for value in full:
        axes.axvline(value, **baseline("full_prefill"))
    axes.set(yticks=rows, yticklabels=list(parts.index), xlabel="median TTFT (ms)", title=title)
    axes.set_ylim(len(parts) - 0.4, -0.6)
    figure.legend(loc="outside lower center", ncols=len(BARS))
    return figure
