"""Documents cut into chunks of token ids: windows, whole sentences or paragraphs, or passages as they come.

Chunks are cut from the document's own ids and stay ids: joined, they are the document's ids again. Nothing is decoded
and encoded anew on the way.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from transformers import PreTrainedTokenizerBase

from ragkv.prompt import Ids
from ragkv.prompt.templates import encode, guard

By = Literal["tokens", "sentences", "paragraphs"]
_ENDS = {
    "paragraphs": re.compile(r"\n\s*\n"),
    "sentences": re.compile(r"[.!?]+[\"')\]\N{RIGHT DOUBLE QUOTATION MARK}]*\s+|[\u3002\uff01\uff1f]+|\n+"),
}
_LEVELS = {"tokens": (), "sentences": ("sentences",), "paragraphs": ("paragraphs", "sentences")}


@dataclass(frozen=True)
class Chunked:
    """A document in chunks.

    Attributes
    ----------
    chunks
        Token ids.
    kept
        Which of the document's tokens they hold, in order: all, unless its middle was cut out.
    """

    chunks: list[Ids]
    kept: list[int]


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
        A text; or passages, each of which becomes a chunk as it is, however long.
    by
        ``tokens``: windows of `tokens` ids. ``sentences``, ``paragraphs``: as many whole ones as fit into `tokens`;
        what is too long on its own is cut at the next smaller unit.
    max_tokens
        A longer document keeps its first and its last tokens, half of them each (as LongBench truncates).

    Raises
    ------
    ValueError
        `tokens` is below 1, `by` unknown, or sentences are asked for from a tokenizer that does not say where its
        tokens stand.
    """
    if tokens < 1:
        raise ValueError(f"a chunk size of {tokens} tokens: it must be at least 1")
    if by not in _LEVELS:
        raise ValueError(f"chunks by {by!r}: choose one of {', '.join(_LEVELS)}")
    if isinstance(document, str):
        ids, levels = _encode(tokenizer, document, _LEVELS[by])
    else:
        passages = [encode(tokenizer, passage) for passage in document]
        ids, levels = [i for passage in passages for i in passage], [list(accumulate(map(len, passages)))]
    kept = head_tail(len(ids), max_tokens)
    cut = [i for i in range(1, len(kept)) if kept[i] != kept[i - 1] + 1] if levels else []  # windows go on behind it
    levels = [sorted({bisect_left(kept, end) for end in ends} | set(cut)) for ends in levels]
    if isinstance(document, str):
        parts = pairwise([0, *cut, len(kept)])
        spans = [span for part in parts for span in _joined(_pieces(*part, levels, tokens), tokens)]
    else:
        spans = list(pairwise([0, *levels[0]]))
    return Chunked([tuple(ids[i] for i in kept[start:stop]) for start, stop in spans if stop > start], kept)


def head_tail(length: int, most: int | None) -> list[int]:
    """Indices of what stays of `length` tokens: all, or the first and the last of them, `most` together."""
    if most is None or length <= most:
        return list(range(length))
    if most < 1:
        raise ValueError(f"no room for the document: prefix and question leave {most} tokens of the limit to it")
    tail = most // 2
    return [*range(most - tail), *range(length - tail, length)]


def encode_with_spans(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of `text`, and where each token stands, as (start, stop) characters."""
    if not tokenizer.is_fast:
        raise ValueError(
            "this tokenizer does not say where its tokens stand in the text: use a fast one, or chunks by tokens"
        )
    before, skip = guard(tokenizer)
    encoded = tokenizer(before + text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    spans = [(start - len(before), stop - len(before)) for start, stop in encoded.offset_mapping[skip:]]
    return encoded.input_ids[skip:], spans


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, kinds: tuple[str, ...]) -> tuple[list[int], list[list[int]]]:
    """The text's ids, and at which of them units of each kind end."""
    if not kinds:
        return encode(tokenizer, text), []
    ids, spans = encode_with_spans(tokenizer, text)
    stops = [stop for _, stop in spans]
    # the white space behind a unit is its own, unless it is part of the next word's token
    ends = [[bisect_right(stops, match.end()) for match in _ENDS[kind].finditer(text)] for kind in kinds]
    return ids, ends


def _pieces(start: int, stop: int, levels: Sequence[list[int]], size: int) -> Iterator[tuple[int, int]]:
    """Spans of at most `size` tokens: units of the first level, those too long cut by the next, at last windows."""
    if stop - start <= size and not levels:
        yield start, stop
    elif not levels:
        yield from pairwise([*range(start, stop, size), stop])
    else:
        inside = levels[0][bisect_left(levels[0], start + 1) : bisect_left(levels[0], stop)]
        for unit in pairwise([start, *inside, stop]):
            if unit[1] - unit[0] <= size:
                yield unit
            else:
                yield from _pieces(*unit, levels[1:], size)


def _joined(pieces: Iterator[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Neighbouring pieces together, as many as fit into `size` tokens."""
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
