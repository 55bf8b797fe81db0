"""A few prompts of a task: the question, each method's answer, and the tokens that it recomputed in the text."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import pandas as pd
from transformers import PreTrainedTokenizerBase

from ragkv.experiment.experiment import Experiment
from ragkv.experiment.items import Item
from ragkv.experiment.steps import CLOSE_RATIO
from ragkv.figures.highlight import token_texts
from ragkv.figures.style import label

EXAMPLES = 5  # prompts of a task
LONGEST = 1500  # tokens of a document that are shown


@dataclass(frozen=True)
class Answer:
    """What one method did with a prompt.

    Attributes
    ----------
    recomputed
        Positions of the document, within the prompt.
    partial
        Whether these are a part of the document: neither all of it nor nothing.
    """

    method: str
    prediction: str
    score: float
    recomputed: frozenset[int]
    partial: bool


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens of a chunk that the same methods recomputed."""

    text: str
    methods: tuple[int, ...]  # their numbers among the answers
    evidence: bool


@dataclass(frozen=True)
class Chunk:
    """A chunk of the document."""

    number: int
    pieces: list[Piece]


def examples(
    experiment: Experiment, benchmark: str, task: str, rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase | None
) -> list[dict]:
    """Five prompts, evenly spaced among those of a task, each with all its methods at the ratio closest to 15 %.

    Parameters
    ----------
    rows
        The results of the task.
    tokenizer
        The model's; without it the text of the document is left out.

    Returns
    -------
    list of dict
        ``id, question, expected, answers`` (of `Answer`), ``chosen`` (the number of the answer whose tokens are shown
        first; None without any), ``chunks`` (of `Chunk`), ``left_out`` (the number of chunks that are not shown).
    """
    by_id = {item.id: item for item in experiment.items(benchmark, task)}
    ids = list(rows["prompt"].unique())
    chosen = [ids[number * len(ids) // min(EXAMPLES, len(ids))] for number in range(min(EXAMPLES, len(ids)))]
    closest = _closest(rows)
    table = []
    for prompt in chosen:
        item = by_id[prompt]
        answers = _answers(closest[closest["prompt"] == prompt], item)
        shown = _shown_chunks(item, answers)
        chunks = [] if tokenizer is None else [_chunk(tokenizer, item, number, answers) for number in shown]
        table.append(
            {
                "id": prompt,
                "question": item.question,
                "expected": ", ".join(item.answers),
                "answers": answers,
                "chosen": next((number for number, answer in enumerate(answers) if answer.partial), None),
                "chunks": chunks,
                "left_out": len(item.prompt.chunks) - len(shown),
            }
        )
    return table


def _closest(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each method at the one of its ratios that is closest to 15 %."""
    away = (rows["ratio"] - CLOSE_RATIO).abs()
    return rows[away == away.groupby(rows["method"]).transform("min")]


def _answers(rows: pd.DataFrame, item: Item) -> list[Answer]:
    span = item.prompt.document_span
    answers = []
    for row in rows.itertuples():
        name = label(row.method, row.ratio, row.share)
        recomputed = frozenset(position for position in map(int, row.recomputed) if position in span)
        answers.append(Answer(name, row.prediction, row.score, recomputed, 0 < len(recomputed) < len(span)))
    return answers


def _shown_chunks(item: Item, answers: list[Answer]) -> list[int]:
    """The chunks to show, in the document's order: all, or those with evidence and with the most recomputed tokens."""
    start = item.prompt.document_span.start
    proven = {start + index for index in item.evidence}
    spans = item.prompt.chunk_spans

    def worth(number: int) -> tuple[bool, int]:
        positions = set(spans[number])
        return bool(positions & proven), sum(len(positions & answer.recomputed) for answer in answers if answer.partial)

    shown: list[int] = []
    total = 0
    for number in sorted(range(len(spans)), key=worth, reverse=True):
        total += len(spans[number])
        if total > LONGEST and shown:
            break
        shown.append(number)
    return sorted(shown)


def _chunk(tokenizer: PreTrainedTokenizerBase, item: Item, number: int, answers: list[Answer]) -> Chunk:
    return Chunk(number + 1, list(_pieces(tokenizer, item, number, answers)))


def _pieces(tokenizer: PreTrainedTokenizerBase, item: Item, number: int, answers: list[Answer]) -> Iterator[Piece]:
    """A chunk's text, cut where the methods that recomputed it change, or where evidence begins or ends."""
    span = item.prompt.chunk_spans[number]
    start = item.prompt.document_span.start
    evidence = set(item.evidence)
    marked = []
    for text, tokens in token_texts(tokenizer, item.prompt.chunks[number]):
        positions = span[tokens]
        methods = tuple(
            number
            for number, answer in enumerate(answers)
            if answer.partial and not answer.recomputed.isdisjoint(positions)
        )
        marked.append((text, methods, any(position - start in evidence for position in positions)))
    for (methods, proven), neighbours in groupby(marked, key=lambda one: one[1:]):
        yield Piece("".join(text for text, *_ in neighbours), methods, proven)
