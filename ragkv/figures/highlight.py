"""A prompt's document as HTML: recomputed tokens highlighted in place, evidence, and the question's attention.

Nothing is told by colour alone: recomputed tokens have a background, evidence is bold and underlined. Other text keeps
the page's own colours, so that it is readable in light and dark themes.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from matplotlib import colormaps
from matplotlib.colors import to_hex
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ragkv.figures.style import EVIDENCE
from ragkv.figures.templates import templates
from ragkv.prompt import Ids, Prompt

_LEVELS = [to_hex(colormaps["cividis"](level / 15)) for level in range(16)]


@dataclass(frozen=True)
class _Piece:
    """Text of one kind, and the white space before it, which is not marked."""

    space: str
    text: str
    recomputed: bool
    evidence: bool


@dataclass(frozen=True)
class _Strip:
    """A chunk's weights: stops of a gradient, its width, and the chunk's share of all weights, both in per cent."""

    stops: list[str]
    width: float
    share: float


@dataclass(frozen=True)
class _Chunk:
    caption: str
    strip: _Strip | None
    pieces: list[_Piece]


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
    chunks = []
    for number, (span, ids) in enumerate(zip(prompt.chunk_spans, prompt.chunks, strict=True), 1):
        recomputed = [position in recomputed_positions for position in span]
        proven = [position - start in evidence_indices for position in span]
        strip = None
        if weights is not None:
            strip = _strip(weights, slice(span.start - start, span.stop - start), len(span) / longest)
        tokens = [(text, any(recomputed[part]), any(proven[part])) for text, part in token_texts(tokenizer, ids)]
        chunks.append(_Chunk(_caption(number, recomputed, proven), strip, list(_pieces(tokens))))
    return (
        templates("ragkv.figures")
        .get_template("highlight.html.jinja")
        .render(
            chunks=chunks,
            has_evidence=bool(evidence_indices),
            evidence_colour=EVIDENCE,
            measure=None if weights is None else measure,
            levels=_LEVELS,
        )
    )


def _pieces(tokens: Iterable[tuple[str, bool, bool]]) -> Iterator[_Piece]:
    """Join neighbouring tokens (text, recomputed, evidence) of the same kind."""
    for (recomputed, proven), neighbours in groupby(tokens, key=lambda token: token[1:]):
        text = "".join(token[0] for token in neighbours)
        space = text[: len(text) - len(text.lstrip())] if text.strip() else ""
        yield _Piece(space, text[len(space) :], recomputed, proven)


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
    return caption


def _strip(weights: Sequence[float], chunk: slice, width: float) -> _Strip:
    """A strip of a chunk's weights.

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
    return _Strip(stops, 100 * width, 100 * share)
