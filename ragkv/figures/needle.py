"""Where needles are found: every method over the needle's depth and the text's length."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from ragkv.figures.style import WIDTH, label, styled
from ragkv.results.comparison import GROUP, shares

READABLE = 12  # columns whose cells have room for a number
FLOOR = 1e-6  # nats: smaller divergences have the darkest colour
FOUND = 0.5  # a lower score is a needle that was not found


@styled
def heat_map(rows: pd.DataFrame, title: str) -> Figure:
    """A row per method and ratio, the best first, and a column per length and depth of the needle.

    The colour is the KL divergence from full prefill along the answer, which differs between methods that find every
    needle, too; without a full prefill it is the score. Cells show the score where there is room; a cross marks needles
    that were not found (a score below 0.5).

    Parameters
    ----------
    rows
        Results with a ``depth`` and a ``length`` each.
    """
    by_kl = "kl" in rows and rows["kl"].notna().any()
    shown = rows[rows["method"] != "full_prefill"] if by_kl and (rows["method"] != "full_prefill").any() else rows
    value = "kl" if by_kl else "score"
    scores = _table(rows, "score")
    colours = _table(shown, value)
    means = colours.mean(axis=1)
    colours = colours.loc[means.sort_values(ascending=by_kl, kind="stable").index]
    scores = scores[colours.columns]
    figure = Figure(figsize=(WIDTH, 1.3 + 0.21 * max(5, len(colours))))
    axes = figure.subplots()
    if by_kl:
        lowest = max(colours.min().min(), FLOOR)
        highest = max(colours.max().max(), 2 * lowest)
        image = axes.imshow(colours.clip(lower=lowest), norm=LogNorm(lowest, highest), cmap="cividis_r", aspect="auto")
    else:
        image = axes.imshow(colours, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    _write_scores(axes, image, colours, scores.loc[colours.index])
    recomputed = shares(rows)
    names = [label(method, ratio, recomputed[method, ratio]) for method, ratio in colours.index]
    axes.set_yticks(range(len(colours)), names)
    _columns(axes, list(colours.columns))
    full = rows.loc[rows["method"] == "full_prefill", "score"]
    note = f"\nscore of full_prefill: {full.mean():.2f}" if by_kl and len(full) else ""
    axes.set_title(title + note)
    low, high = image.get_clim()
    ticks = np.geomspace(low, high, 4) if by_kl else np.linspace(low, high, 6)
    measure = "KL from full prefill (nats)" if by_kl else "score"
    bar = figure.colorbar(image, ax=axes, label=measure, ticks=ticks, format="%.1g", shrink=0.9, pad=0.02)
    bar.ax.minorticks_off()
    return figure


def _table(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """Means, a row per method and ratio and a column per length and depth."""
    return rows.pivot_table(index=GROUP, columns=["length", "depth"], values=value, sort=True)


def _write_scores(axes: Axes, image: AxesImage, colours: pd.DataFrame, scores: pd.DataFrame) -> None:
    """Scores and crosses, in white on dark cells and in black on bright ones."""
    readable = scores.shape[1] <= READABLE
    for row, column in np.ndindex(scores.shape):
        score = scores.iloc[row, column]
        missed = "x" if score < FOUND else ""
        text = f"{score:.2f} {missed}".strip() if readable else missed
        red, green, blue, _ = image.cmap(image.norm(colours.iloc[row, column]))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")


def _columns(axes: Axes, columns: list[tuple[float, float]]) -> None:
    """Depths below each column, and below them the lengths, with a line between two lengths."""
    axes.set_xticks(range(len(columns)), [f"{depth:g}" for _, depth in columns])
    axes.tick_params(length=0)
    lengths = [length for length, _ in columns]
    for start in (place for place in range(1, len(columns)) if lengths[place] != lengths[place - 1]):
        axes.axvline(start - 0.5, color="white", linewidth=3)
    below = axes.secondary_xaxis(-0.0)
    middles = {length: np.mean([place for place, one in enumerate(lengths) if one == length]) for length in lengths}
    below.set_xticks(list(middles.values()), [f"\n{length:,g} tokens" for length in middles])
    below.tick_params(length=0)
    below.spines["bottom"].set_visible(False)
    axes.set_xlabel("depth of the needle (%), and length of the document", labelpad=14)
