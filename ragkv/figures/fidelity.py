"""How much of what plain reuse loses a method recovers, over what it recomputes."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ragkv.figures.accuracy import best_first, lines_over, without_baselines
from ragkv.figures.style import BASELINES, WIDTH, baseline, legend_below, looks, method_lines, shares_across, styled

GAPS = {"recovered_kl": "KL along the answer", "recovered_score": "score"}
KL = {"kl": "KL along the answer"}


@styled
def recovered_over_share(table: pd.DataFrame, title: str) -> Figure:
    """The share of the gap between plain reuse (0) and full prefill (1) that is recovered, with 95 % intervals.

    Methods stand at the share of the document that they really recomputed, a line for each. There is a panel for the
    gap in KL divergence, and one for the gap in score if it has intervals: a gap of a few answers has none, and says
    little. Without any gap, the only panel shows the divergence itself.

    Parameters
    ----------
    table
        As `ragkv.results.fidelity.fidelity_by_method` returns it, with ``kl``.
    """
    measures = gaps(table) or KL
    figure = Figure(figsize=(WIDTH, 3.2))
    panels: list = list(figure.subplots(1, len(measures), sharey=True, squeeze=False).flat)
    methods = without_baselines(table)
    in_order = best_first(methods, next(iter(measures)))
    styles = looks(in_order[::-1] if "kl" in measures else in_order)
    for panel, (value, text) in zip(panels, measures.items(), strict=True):
        lines_over(panel, methods, styles, methods["share"] * 100, value, f"{value}_low", f"{value}_high")
        shares_across(panel)
        panel.set_title(text)
    lines = method_lines(styles)
    if "kl" in measures:
        panels[0].set_ylabel("nats, 95 % interval")
    else:
        panels[0].set_ylabel("share of the gap recovered, 95 % interval")
        _from_reuse_to_full(panels, methods[list(measures)])
        lines += [Line2D([], [], label=method, **baseline(method)) for method in BASELINES]
    legend_below(figure, lines)
    figure.suptitle(title)
    return figure


def gaps(table: pd.DataFrame) -> dict[str, str]:
    """The columns with the share of a gap that is recovered and can be bounded, and what each is called.

    The gap in KL is shown without intervals too, if there is no other.
    """
    bounded = {name: text for name, text in GAPS.items() if name in table and table[f"{name}_low"].notna().any()}
    if not bounded and "recovered_kl" in table and table["recovered_kl"].notna().any():
        return {"recovered_kl": GAPS["recovered_kl"]}
    return bounded


def _from_reuse_to_full(panels: list[Axes], recovered: pd.DataFrame) -> None:
    """Mark both ends of the gap. All points are visible; wide intervals are cut off."""
    for panel in panels:
        panel.axhline(0, **baseline("full_reuse"))
        panel.axhline(1, **baseline("full_prefill"))
    panels[0].set_ylim(min(0.0, recovered.min().min()) - 0.1, max(1.0, recovered.max().max()) + 0.1)
