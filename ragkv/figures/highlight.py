"""A prompt's document as HTML: recomputed tokens highlighted in place, evidence, and the question's attention.

Nothing is told by colour alone: recomputed tokens have a background, evidence is bold and underlined. Other text keeps
the page's own colours, so that it is readable in light and dark themes.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from html import escape
from itertools import groupby

from matplotlib import colormaps
from matplotlib.colors import to_hex
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ragkv.figures.style import EVIDENCE
from ragkv.prompt import Ids, Prompt

_RECOMPUTED = "background:#F5C77E;color:#1A1A1A;border-radius:2px"
_EVIDENCE = f"font-weight:bold;text-decoration:none;border-bottom:3px solid {EVIDENCE}"
_CHUNK = "margin:0 0 .8em;padding-left:.6em;border-left:2px solid #888"
_LEVELS = [to_hex(colormaps["cividis"](level / 15)) for level in range(16)]


def highlight(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    selected: Collection[int],
    evidence: Collection[int] = (),
    attention: Tensor | Sequence[float] | None = None,
    *,
    measure: str = "attention of the question",
) -> str:
    """HTML that shows the document chunk by chunk; markup within the document is shown as text.

    Parameters
    ----------
    selected
        Positions within the prompt that were recomputed (`Prefill.selected`).
    evidence
        Indices within the document of the tokens that the answer follows from.
    attention
        ``(document,)``: how much the question attends to each token, such as a layer, or the sum over layers, of
        `ragkv.experiment.inspection.attention_by_layer`. Each chunk gets a strip that shows the square root of it,
        token by token.
    measure
        What the legend calls these numbers, if they are something other than attention.

    Raises
    ------
    ValueError
        `attention` has another length than the document.
    """
    recomputed_positions, evidence_indices = set(map(int, selected)), set(map(int, evidence))
    start = prompt.document_span.start
    weights = None if attention is None else [float(weight) for weight in attention]
    if weights is not None and len(weights) != len(prompt.document_span):
        raise ValueError(f"attention to {len(weights)} tokens, and the document has {len(prompt.document_span)}")
    longest = max(map(len, prompt.chunks), default=0)
    parts = [_legend(bool(evidence_indices), None if weights is None else measure)]
    for number, (span, ids) in enumerate(zip(prompt.chunk_spans, prompt.chunks, strict=True), 1):
        recomputed = [position in recomputed_positions for position in span]
        proven = [position - start in evidence_indices for position in span]
        parts.append(f'<div style="{_CHUNK}">{_caption(number, recomputed, proven)}')
        if weights is not None:
            parts.append(_strip(weights, slice(span.start - start, span.stop - start), len(span) / longest))
        pieces = [(text, any(recomputed[tokens]), any(proven[tokens])) for text, tokens in token_texts(tokenizer, ids)]
        parts.append(f'<p style="margin:0;white-space:pre-wrap">{_marked(pieces)}</p></div>')
    return f'<div style="font-family:monospace;font-size:90%;line-height:1.5">{"".join(parts)}</div>'


def _marked(pieces: Iterable[tuple[str, bool, bool]]) -> str:
    """HTML of pieces (text, recomputed, evidence); neighbours of the same kind share a mark."""
    html = []
    for (recomputed, proven), neighbours in groupby(pieces, key=lambda piece: piece[1:]):
        text = "".join(piece[0] for piece in neighbours)
        space = text[: len(text) - len(text.lstrip())] if text.strip() else ""  # before a word; it is not marked
        marked = escape(text[len(space) :])
        if proven:
            marked = f'<u style="{_EVIDENCE}">{marked}</u>'
        if recomputed:
            marked = f'<mark style="{_RECOMPUTED}">{marked}</mark>'
        html.append(space + marked)
    return "".join(html)


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> Iterator[tuple[str, slice]]:
    """The text that each token adds to those before it, and which token it is: several, if they share a character."""
    start, before = 0, ids[:0]  # of the tokens whose text is not known yet; the tokens just before them
    for stop in range(1, len(ids) + 1):
        new = ids[start:stop]
        text = tokenizer.decode(list(before + new))[len(tokenizer.decode(list(before))) :]
        incomplete = text.endswith("\ufffd")  # tokens of single bytes: a character has up to four
        if incomplete and len(new) < 4 and stop < len(ids):
            continue
        yield text, slice(start, stop)
        start, before = stop, new


def _caption(number: int, recomputed: Sequence[bool], proven: Sequence[bool]) -> str:
    caption = f"chunk {number}: {sum(recomputed)} of {len(recomputed)} tokens recomputed"
    if any(proven):
        both = sum(a and b for a, b in zip(recomputed, proven, strict=True))
        caption += f", {both} of the {sum(proven)} of evidence"
    return f'<div style="font-size:85%;opacity:.75">{caption}</div>'


def _strip(weights: Sequence[float], chunk: slice, width: float) -> str:
    """A strip of a chunk's weights, and beside it the chunk's share of all weights.

    Parameters
    ----------
    weights
        Of the whole document: the highest one has the brightest colour.
    width
        Of the strip, as a share of the widest.
    """
    highest, total = max(weights), sum(weights)
    levels = [round(15 * (weight / highest) ** 0.5) if weight > 0 else 0 for weight in weights[chunk]]
    stops = []
    start = 0
    for level, run in groupby(levels):
        end = start + len(list(run))
        stops.append(f"{_LEVELS[level]} {100 * start / len(levels):.4g}% {100 * end / len(levels):.4g}%")
        start = end
    share = sum(weights[chunk]) / total if total > 0 else 0.0
    return (
        '<div style="display:flex;align-items:center;gap:.5em"><div style="flex:1">'
        f'<div style="width:{100 * width:.4g}%;height:10px;background:linear-gradient(90deg,{",".join(stops)})"></div>'
        f'</div><div style="font-size:85%;opacity:.75;width:3em">{share:.0%}</div></div>'
    )


def _legend(evidence: bool, measure: str | None) -> str:
    samples = [_marked([("recomputed", True, False)])]
    if evidence:
        samples.append(_marked([("evidence", False, True)]))
    if measure is not None:
        ramp = f"display:inline-block;width:6em;height:10px;background:linear-gradient(90deg,{','.join(_LEVELS)})"
        samples.append(f'{escape(measure)}, low <span style="{ramp}"></span> high')
    return f'<div style="margin-bottom:.6em">{" &nbsp; ".join(samples)}</div>'
