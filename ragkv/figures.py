"""Every figure, drawn from a results table; one style, readable by the colour-blind and in grey."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#999999"]  # Okabe and Ito
MARKERS = "osD^vP*X"
BASELINES = {"full_prefill": "--", "full_reuse": ":"}  # methods without a ratio: a line across


def _axes(width: float, height: float):  # type: ignore[no-untyped-def]
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def accuracy_over_ratio(rows: pd.DataFrame, title: str) -> Figure:
    """Mean score over the share of recomputed document tokens, a line per method."""
    figure, axes = _axes(6.4, 4)
    for method, style in BASELINES.items():
        score = rows.loc[rows["method"] == method, "score"].mean()
        if not np.isnan(score):
            axes.axhline(score, linestyle=style, color="#555555", linewidth=1.2, label=method.replace("_", " "))
    for index, (method, points) in enumerate(_curves(rows).items()):
        axes.plot(
            points.index * 100, points, label=method, color=COLOURS[index % 8], marker=MARKERS[index % 8], markersize=5
        )
    axes.set(xlabel="recomputed document tokens (%)", ylabel="accuracy", ylim=(-0.03, 1.05), title=title)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure


def frontier(summary: pd.DataFrame, title: str) -> Figure:
    """Accuracy over what it costs, a panel each: the share recomputed, TTFT, and the bytes read from the store.

    Parameters
    ----------
    summary
        As `ragkv.frontier.costs` gives it.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels: list = list(figure.subplots(1, 3, sharey=True))
    several = summary.groupby("method", sort=False).filter(lambda part: len(part) > 1)
    order = several.groupby("method")["score"].mean().sort_values(ascending=False).index
    best = summary.loc[summary.groupby("method", sort=False)["score"].idxmax()]
    _over(panels[0], several, order, several["share"] * 1e2, "recomputed document tokens (%)")
    _over(panels[1], several, order, several["ttft"] * 1e3, "median TTFT (ms)")
    _over(panels[2], best, _smaller(summary), best["stored_bytes"] / 1e3, "read from the store (kB)")
    full = summary.loc[summary["method"] == "full_prefill", "score"]
    for panel in panels:
        if len(full):
            panel.axhline(full.iloc[0], linestyle="--", color="#555555", linewidth=1)
    panels[0].set(ylabel="accuracy, 95 % interval", ylim=(-0.03, 1.05), xscale="log")
    for panel in panels[1:]:
        if panel.containers:
            panel.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def _over(panel: Axes, summary: pd.DataFrame, methods: Iterable[str], cost: pd.Series, axis: str) -> None:
    """Scores with their intervals over a cost, a line per method."""
    for index, method in enumerate(methods):
        points = summary[summary["method"] == method].sort_values("ratio")
        spread = [points["score"] - points["low"], points["high"] - points["score"]]
        style: dict = {"color": COLOURS[index % 8], "marker": MARKERS[index % 8], "markersize": 5, "capsize": 2}
        style |= {"elinewidth": 0.7, "linewidth": 1.3, "label": method}
        panel.errorbar(cost[points.index], points["score"], yerr=spread, **style)
    panel.set_xlabel(axis)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def _smaller(summary: pd.DataFrame) -> list[str]:
    """The methods that read less than the most, and for comparison the best three of those that read the most."""
    most = summary["stored_bytes"].max()
    less = summary.loc[(summary["stored_bytes"] > 0) & (summary["stored_bytes"] < most), "method"]
    same = summary[summary["stored_bytes"] == most].sort_values("score", ascending=False, kind="stable")["method"]
    return [*same.unique()[:3], *less.unique()]


def _curves(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Mean score by ratio of every method that was run at several ratios, best first."""
    means = rows.groupby(["method", "ratio"], sort=False)["score"].mean()
    curves = {method: means[method].sort_index() for method in rows["method"].unique()}
    several = {method: curve for method, curve in curves.items() if len(curve) > 1}
    return dict(sorted(several.items(), key=lambda item: -item[1].mean()))


def score_by_method(summary: pd.DataFrame, title: str) -> Figure:
    """Mean score of each method and ratio with its 95 % interval; one panel, full prefill marked.

    Parameters
    ----------
    summary
        As `ragkv.comparison.summarise` gives it.
    """
    figure, axes = _axes(6.4, 0.9 + 0.24 * len(summary))
    labels = [label(*key) for key in zip(summary["method"], summary["ratio"], strict=True)]
    spread = [summary["score"] - summary["low"], summary["high"] - summary["score"]]
    axes.errorbar(summary["score"], range(len(labels)), xerr=spread, fmt="ko", ecolor="#777777", capsize=3)
    full = summary.loc[summary["method"] == "full_prefill", "score"]
    if len(full):
        axes.axvline(full.iloc[0], linestyle="--", color="#555555", linewidth=1)
    axes.set(yticks=range(len(labels)), yticklabels=labels, xlabel="score, 95 % interval", title=title)
    axes.set_xlim(-0.03, 1.03)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.25)
    return figure


def heat_maps(grids: Mapping[tuple[str, float], pd.DataFrame], title: str) -> Figure:
    """Scores over depth and length, a panel per method and ratio with the mean in its title.

    Parameters
    ----------
    grids
        As `ragkv.comparison.grid` gives them.
    """
    across = min(4, len(grids))
    down = -(-len(grids) // across)
    figure = Figure(figsize=(2.5 * across + 0.6, 2.5 * down + 0.4), layout="constrained")
    panels: list = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
    for panel, (key, table) in zip(panels, grids.items(), strict=False):
        image = panel.imshow(table, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        panel.set_title(f"{label(*key)}: {table.to_numpy().mean():.2f}", fontsize=9)
        panel.set_xticks(range(table.shape[1]), [f"{length:g}" for length in table.columns], rotation=45, fontsize=8)
        panel.set_yticks(range(table.shape[0]), [f"{depth:g}" for depth in table.index], fontsize=8)
    for panel in panels[len(grids) :]:
        panel.set_visible(False)
    figure.supxlabel("length (tokens)", fontsize=10)
    figure.supylabel("depth (%)", fontsize=10)
    figure.suptitle(title, fontsize=11)
    figure.colorbar(image, ax=figure.axes, label="score", shrink=0.8)
    return figure


def label(method: str, ratio: float) -> str:
    """A method at a ratio, in a figure or a table's head."""
    return method if method in BASELINES else f"{method} {ratio:.0%}"


def recomputed_tokens(
    selected: Mapping[str, Sequence[int]], document: int, chunks: Sequence[int], evidence: Sequence[int], title: str
) -> Figure:
    """Which document tokens each method recomputes in one prompt, with chunk boundaries and evidence.

    Parameters
    ----------
    selected
        Indices within the document by method.
    document
        The document's length in tokens.
    chunks
        Where chunks begin.
    evidence
        Indices of the tokens that the answer follows from.
    """
    figure, axes = _axes(9, 0.7 + 0.42 * (len(selected) + 1))
    lines = {"evidence": evidence, **selected}
    for row, tokens in enumerate(lines.values()):
        hits = set(tokens) & set(evidence)
        axes.eventplot(sorted(set(tokens) - hits), lineoffsets=row, linelengths=0.7, linewidths=1, colors="#9AB8CC")
        axes.eventplot(sorted(hits), lineoffsets=row, linelengths=0.8, linewidths=1.4, colors="#D55E00")
    for start in chunks:
        axes.axvline(start, color="#BBBBBB", linewidth=0.6, zorder=0)
    axes.set(
        yticks=range(len(lines)),
        yticklabels=list(lines),
        xlim=(0, document),
        xlabel="token of the document",
        title=title,
    )
    axes.invert_yaxis()
    return figure


def attention_map(attention: np.ndarray, chunks: Sequence[int], evidence: Sequence[int], title: str) -> Figure:
    """The question's attention over the document, ``(layers, document)``, each layer to its own maximum."""
    figure, axes = _axes(9, 3.2)
    shown = attention / attention.max(axis=1, keepdims=True)
    image = axes.imshow(np.sqrt(shown), aspect="auto", cmap="cividis", interpolation="nearest", origin="lower")
    for start in chunks:
        axes.axvline(start, color="white", linewidth=0.4, alpha=0.6)
    axes.plot(evidence, [len(attention) - 0.3] * len(evidence), "|", color="#D55E00", markersize=7, clip_on=False)
    axes.set(xlabel="token of the document (evidence marked above)", ylabel="layer", title=title)
    axes.title.set_position((0.5, 1.1))
    figure.colorbar(image, label="attention, square root", shrink=0.85)
    return figure


def ttft_by_method(rows: pd.DataFrame, title: str) -> Figure:
    """Median TTFT of each method and ratio, with the time to load and to select, full prefill marked."""
    table = rows.groupby(["method", "ratio"], sort=False)[["ttft", "load", "select"]].median() * 1e3
    figure, axes = _axes(6.4, 0.8 + 0.24 * len(table))
    labels = [label(*key) for key in table.index]
    rest = table["ttft"] - table["load"] - table["select"]
    left = np.zeros(len(table))
    for name, part, colour in (
        ("load", table["load"], "#56B4E9"),
        ("select", table["select"], "#E69F00"),
        ("compute", rest, "#666666"),
    ):
        axes.barh(labels, part, left=left, label=name, color=colour, height=0.7)
        left += part.to_numpy()
    if ("full_prefill", 1.0) in table.index:
        axes.axvline(table.loc[("full_prefill", 1.0), "ttft"], linestyle="--", color="black", linewidth=1)
    axes.set(xlabel="median TTFT (ms)", title=title)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=8)
    axes.legend(frameon=False, loc="lower right")
    return figure


def ttft_over_length(rows: pd.DataFrame, title: str) -> Figure:
    """Median TTFT over the prompt's length, a line for each method, dashed where keys and values come from the host.

    Parameters
    ----------
    rows
        As `ragkv.latency.prefill_rows` gives them.
    """
    figure, axes = _axes(7.4, 4)
    methods = list(dict.fromkeys(zip(rows["selector"], rows["ratio"], rows["hops"].fillna(0), strict=True)))
    for (selector, ratio, hops, tier), points in rows.fillna({"hops": 0}).groupby(
        ["selector", "ratio", "hops", "tier"], sort=False
    ):
        index = methods.index((selector, ratio, hops))
        name = selector if ratio in (0, 1) else f"{selector} {ratio:.0%}" + (f", {hops:.0f} hops" if hops else "")
        style = {"color": COLOURS[index % 8], "marker": MARKERS[index % 8], "markersize": 5}
        style |= {"linestyle": "--" if tier == "pinned" else "-", "label": f"{name}, {tier}" if tier else name}
        axes.plot(points["tokens"], points["p50"], **style)
    axes.set(yscale="log", xlabel="prompt (tokens)", ylabel="TTFT (ms)", title=title)
    _over_lengths(figure, axes, rows["tokens"])
    return figure


def attention_speed(rows: pd.DataFrame, ceiling: float, title: str) -> Figure:
    """Each attention backend's useful operations per second over the keys, under those of a matrix product.

    Parameters
    ----------
    rows
        As `ragkv.latency.attention_rows` gives them.
    ceiling
        What the machine reaches in matrix products, TFLOP/s.
    """
    figure, axes = _axes(7.4, 3.4)
    for index, (backend, points) in enumerate(rows.groupby("backend", sort=False)):
        axes.plot(
            points["tokens"], points["tflops"], color=COLOURS[index % 8], marker=MARKERS[index % 8], label=backend
        )
    axes.axhline(ceiling, linestyle="--", color="#555555", linewidth=1, label="matrix product")
    axes.set(xlabel="keys", ylabel="useful TFLOP/s", title=title, ylim=(0, None))
    _over_lengths(figure, axes, rows["tokens"])
    return figure


def _over_lengths(figure: Figure, axes: Axes, tokens: pd.Series) -> None:
    """A logarithmic axis with just these lengths, and a legend beside it."""
    lengths = sorted(tokens.unique())
    axes.set_xscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)


def save(figure: Figure, path: Path, source: Mapping[str, object]) -> Path:
    """Write a PNG whose metadata say where its numbers come from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    described = ", ".join(f"{key} {value}" for key, value in source.items())
    figure.savefig(path, dpi=150, metadata={"Software": "ragkv", "Source": described})
    return path
