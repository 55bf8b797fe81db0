"""Cut documents into chunks of token ids: fixed windows, whole sentences or paragraphs, or given passages.

Chunks are slices of the document's own ids: concatenated, they are exactly the ids of the document. No text is decoded
and encoded again on the way.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from transformers import PreTrainedTokenizerBase

from ragkv.prompt import Ids
from ragkv.prompt.encoding import check_text, encode, encode_with_spans

By = Literal["tokens", "sentences", "paragraphs"]
_UNIT_ENDS = {
    "paragraphs": re.compile(r"\n\s*\n"),
    # Possessive, and from the first mark of a run on: a run of marks without a space after it is read only once.
    "sentences": re.compile(r"(?<![.!?])[.!?]++[\"')\]\N{RIGHT DOUBLE QUOTATION MARK}]*+\s+|[\u3002\uff01\uff1f]+|\n+"),
}
# The kinds of unit that each way of cutting keeps whole, the largest first.
_UNITS: dict[str, tuple[str, ...]] = {
    "tokens": (),
    "sentences": ("sentences",),
    "paragraphs": ("paragraphs", "sentences"),
}


@dataclass(frozen=True)
class Chunked:
    """A document cut into chunks.

    Attributes
    ----------
    chunks
        Token ids of each chunk.
    kept
        Indices of the document's tokens that the chunks hold, in order: all of them, unless the middle was cut out.
    spans
        The (start, stop) characters of each chunk in the document. They leave nothing out but what was cut from the
        middle; a character whose bytes two chunks share is in both. None for passages and without character offsets.
    """

    chunks: list[Ids]
    kept: list[int]
    spans: list[tuple[int, int]] | None = None


def chunk_document(
    tokenizer: PreTrainedTokenizerBase,
    document: str | Sequence[str],
    *,
    by: By = "tokens",
    tokens: int = 512,
    max_tokens: int | None = None,
) -> Chunked:
    """Cut a document into chunks.

    Parameters
    ----------
    document
        A text; or a sequence of passages, each of which becomes one chunk, however long it is.
    by
        ``tokens``: windows of `tokens` ids. ``sentences`` or ``paragraphs``: as many whole ones as fit into `tokens`;
        one that does not fit on its own is cut at the next smaller unit.
    max_tokens
        A longer document keeps only its first and last tokens, half of the limit each (as LongBench truncates).

    Raises
    ------
    ValueError
        `tokens` is below 1, `by` is unknown, the document is not text, or cutting at sentences needs character offsets
        that the tokenizer does not have.
    """
    if tokens < 1:
        raise ValueError(f"a chunk size of {tokens} tokens: it must be at least 1")
    if by not in _UNITS:
        raise ValueError(f"chunks by {by!r}: choose one of {', '.join(_UNITS)}")

    if isinstance(document, str) or not isinstance(document, Sequence):
        check_text(document, "the document")

    offsets = None
    if isinstance(document, str):
        ids, offsets = _encode(tokenizer, document, offsets_needed=bool(_UNITS[by]))
        levels = [_unit_ends(document, offsets or [], kind) for kind in _UNITS[by]]
    else:
        texts = [check_text(passage, f"passage {number}") for number, passage in enumerate(document, 1)]
        passages = [encode(tokenizer, passage) for passage in texts]
        ids = [i for passage in passages for i in passage]
        levels = [list(accumulate(map(len, passages)))]

    kept = head_tail(len(ids), max_tokens)
    # Where the middle was cut out, no unit continues. Windows of tokens do.
    cuts = [i for i in range(1, len(kept)) if kept[i] != kept[i - 1] + 1] if levels else []
    levels = [sorted({bisect_left(kept, end) for end in ends} | set(cuts)) for ends in levels]

    if isinstance(document, str):
        bounds: list[tuple[int, int]] = []
        for part in pairwise([0, *cuts, len(kept)]):
            bounds += _packed(_pieces(*part, levels, tokens), tokens)
    else:
        bounds = list(pairwise([0, *levels[0]]))
    parts = [kept[start:stop] for start, stop in bounds if stop > start]
    chunks = [tuple(ids[i] for i in part) for part in parts]
    if offsets is not None and isinstance(document, str):
        return Chunked(chunks, kept, _character_spans(parts, offsets, len(document)))
    return Chunked(chunks, kept)


def head_tail(length: int, limit: int | None) -> list[int]:
    """Indices of the tokens to keep out of `length`: all, or the first and last ones, `limit` in total."""
    if limit is None or length <= limit:
        return list(range(length))
    if limit < 1:
        raise ValueError(f"no room for the document: prefix and question leave {limit} tokens of the limit to it")
    tail = limit // 2
    return [*range(limit - tail), *range(length - tail, length)]


def _encode(
    tokenizer: PreTrainedTokenizerBase, text: str, *, offsets_needed: bool
) -> tuple[list[int], list[tuple[int, int]] | None]:
    """The text's ids, and the characters of each token if the tokenizer has offsets."""
    if tokenizer.is_fast or offsets_needed:
        return encode_with_spans(tokenizer, text)
    return encode(tokenizer, text), None


def _unit_ends(text: str, offsets: Sequence[tuple[int, int]], kind: str) -> list[int]:
    """The token indices at which a unit ends."""
    # White space after a unit belongs to the unit, unless the tokenizer makes it part of the next word.
    stops = [stop for _, stop in offsets]
    return [bisect_right(stops, match.end()) for match in _UNIT_ENDS[kind].finditer(text)]


def _character_spans(
    parts: Sequence[Sequence[int]], offsets: Sequence[tuple[int, int]], length: int
) -> list[tuple[int, int]]:
    """The characters of each part of a document of `length` characters; parts are indices of its tokens, in order."""
    spans = []
    for part in parts:
        first, last = part[0], part[-1]
        # Characters that no token covers, such as white space, belong to the part before them.
        start = offsets[first][0] if first else 0
        following = offsets[last + 1][0] if last + 1 < len(offsets) else length
        spans.append((start, max(offsets[last][1], following)))
    return spans


def _pieces(start: int, stop: int, levels: Sequence[list[int]], size: int) -> Iterator[tuple[int, int]]:
    """Cut a span into pieces of at most `size` tokens.

    Pieces are units of the first level; a unit that is too long is cut at the next level, and finally into windows.
    """
    if not levels:
        if stop - start <= size:
            yield start, stop
        else:
            yield from pairwise([*range(start, stop, size), stop])
        return
    ends = levels[0]
    inside = ends[bisect_left(ends, start + 1) : bisect_left(ends, stop)]
    for unit in pairwise([start, *inside, stop]):
        if unit[1] - unit[0] <= size:
            yield unit
        else:
            yield from _pieces(*unit, levels[1:], size)


def _packed(pieces: Iterator[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Join adjacent pieces, as many at a time as fit into `size` tokens."""
    joined: tuple[int, int] | None = None
    for start, stop in pieces:
        if joined and stop - joined[0] <= size:
            joined = joined[0], stop
            continue
        if joined:
            yield joined
        joined = start, stop
    if joined:
        yield joined
