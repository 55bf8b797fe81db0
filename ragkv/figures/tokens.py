"""One prompt, token by token: what each method recomputes and what the question attends to."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ragkv.figures.style import EVIDENCE, WIDTH, looks, percent, styled


@styled
def recomputed_tokens(
    selected: Mapping[str, Sequence[int]], document: int, chunks: Sequence[int], evidence: Sequence[int], title: str
) -> Figure:
    """The document tokens that each method recomputes in one prompt, with chunk boundaries and evidence.

    A method's name is followed by the share of the document that it recomputed, and its tokens have its colour. Tokens
    of the evidence are drawn longer than others, and in the colour of the evidence.

    Parameters
    ----------
    selected
        Indices within the document by method.
    document
        The document's length in tokens.
    chunks
        Index of each chunk's first token.
    evidence
        Indices of the tokens that the answer follows from.
    """
    lines: dict[str, Sequence[int]] = {"evidence": evidence} if len(evidence) else {}
    colours = [EVIDENCE] * len(lines)
    for method, style in looks(selected).items():
        lines[f"{method} ({percent(len(selected[method]) / document)})"] = selected[method]
        colours.append(style["color"])
    figure = Figure(figsize=(WIDTH, 0.7 + 0.26 * len(lines)))
    axes = figure.subplots()
    for start in chunks:
        axes.axvline(start, color="#AAAAAA", linewidth=0.6, zorder=0)
    for row, tokens in enumerate(lines.values()):
        hits = set(tokens) & set(evidence)
        others = set(tokens) - hits
        axes.eventplot(sorted(others), lineoffsets=row, linelengths=0.45, linewidths=0.8, colors=colours[row])
        axes.eventplot(sorted(hits), lineoffsets=row, linelengths=0.9, linewidths=1.1, colors=EVIDENCE)
    axes.set(yticks=range(len(lines)), yticklabels=list(lines), title=title)
    axes.set(xlim=(0, document), xlabel="token of the document (chunks begin at the grey lines)")
    axes.invert_yaxis()
    return figure


@styled
def attention_map(attention: np.ndarray, chunks: Sequence[int], evidence: Sequence[int], title: str) -> Figure:
    """The question's attention to the document, ``(layers, document)``; each layer is scaled to its own maximum."""
    figure = Figure(figsize=(WIDTH, 2.4))
    axes = figure.subplots()
    scaled = attention / attention.max(axis=1, keepdims=True)
    image = axes.imshow(np.sqrt(scaled), aspect="auto", cmap="cividis", interpolation="nearest", origin="lower")
    for start in chunks:
        axes.axvline(start, color="white", linewidth=0.4, alpha=0.6)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_ylim(-0.5, len(attention) - 0.5)
    axes.plot(evidence, [len(attention) - 0.1] * len(evidence), "|", color=EVIDENCE, markersize=6, clip_on=False)
    axes.set(xlabel="token of the document" + " (evidence marked above)" * bool(len(evidence)), ylabel="layer")
    axes.set_title(title, pad=9)
    figure.colorbar(image, label="attention, square root", shrink=0.9)
    return figure
