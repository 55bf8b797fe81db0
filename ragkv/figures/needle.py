"""Where needles are found: scores over the needle's depth and the text's length."""

from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure

from ragkv.figures.style import WIDTH, label, styled
from ragkv.results.comparison import grid, shares

ACROSS = 4  # panels in a row


@styled
def heat_maps(rows: pd.DataFrame, title: str) -> Figure:
    """Scores over depth and length: a panel per method and ratio, with its mean in the title.

    Parameters
    ----------
    rows
        Results with a ``depth`` and a ``length`` each.
    """
    grids, recomputed = grid(rows), shares(rows)
    across = min(ACROSS, len(grids))
    down = -(-len(grids) // across)
    figure = Figure(figsize=(WIDTH * (across + 0.4) / (ACROSS + 0.4), 1.7 * down + 0.6))
    panels: list = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
    for panel, (key, table) in zip(panels, grids.items(), strict=False):
        image = panel.imshow(table, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        panel.set_title(fill(f"{label(*key, recomputed[key])}: {table.to_numpy().mean():.2f}", 24), fontsize=8)
        panel.set_xticks(range(table.shape[1]), [f"{length:g}" for length in table.columns], rotation=45)
        panel.set_yticks(range(table.shape[0]), [f"{depth:g}" for depth in table.index])
        panel.tick_params(labelsize=7)
    for panel in panels[len(grids) :]:
        panel.set_visible(False)
    figure.supxlabel("length (tokens)")
    figure.supylabel("depth (%)")
    figure.suptitle(title)
    figure.colorbar(image, ax=figure.axes, label="score", shrink=0.8)
    return figure
