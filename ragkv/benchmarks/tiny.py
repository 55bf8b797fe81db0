"""The benchmarks in the embedded models' small language: RULER's tasks, the needle grid, LongBench's format."""

from dataclasses import replace
from itertools import accumulate
from random import Random
from typing import Any

from ragkv.benchmarks.base import Example
from ragkv.benchmarks.longbench_tasks import Wording
from ragkv.tiny.corpus import SENTENCE_TOKENS, Document, Question, make_document, sentence_text

BEFORE = "Read the notes below.\n"
AROUND = 64  # tokens reserved for instruction, question and answer

_RULER: dict[str, dict[str, Any]] = {
    "niah_single_1": {"needles": 1, "noise": True},
    "niah_single_2": {"needles": 1},
    "niah_single_3": {"needles": 1, "numbers_per_value": 4},
    "niah_multikey_1": {"needles": 4},
    "niah_multikey_2": {"needles": None},  # nothing but needles
    "niah_multikey_3": {"needles": None, "numbers_per_value": 4},
    "niah_multivalue": {"needles": 1, "values_per_key": 3},
    "niah_multiquery": {"needles": 4, "together": 4},
    "vt_1": {"chains": 10, "hops": 1},
    "vt_2": {"chains": 10, "hops": 2},
    "vt_3": {"chains": 10, "hops": 3},
}
RULER_TASKS = tuple(_RULER)
LONGBENCH_WORDING = Wording(BEFORE, "\nFind {input}?", " {input}")


def ruler_example(name: str, length: int, seed: int, number: int) -> Example:
    """Example `number` of a RULER task; prompt and answer have at most `length` tokens together.

    Besides RULER's retrieval tasks there are ``vt_1`` to ``vt_3``: ten chains of assignments over 1 to 3 hops. The
    question is about the last variable of one of them.
    """
    options = dict(_RULER[name])
    sentences = (length - AROUND) // SENTENCE_TOKENS
    if "needles" in options and options["needles"] is None:
        options["needles"] = max(1, sentences)
    document = _made(name, length, sentences, f"{seed}/{number}", options)
    return _example(f"{name}-{length}-{number:04d}", document, {"length": length})


def needle_example(name: str, length: int, depth: float, seed: int, number: int) -> Example:
    """A document of `length` tokens with a needle at `depth` per cent of it."""
    sentences = length // SENTENCE_TOKENS
    document = _made(name, length, sentences, f"{depth}/{seed}/{number}", {"needles": 1})
    question = document.questions[0]
    needle = document.sentences.pop(question.evidence[0])
    index = round(depth / 100 * (sentences - 1))
    document.sentences.insert(index, needle)
    moved = Document(document.sentences, [replace(question, evidence=(index,))])
    return _example(f"{name}-{length}-{depth:g}-{number:02d}", moved, {"length": length, "depth": depth})


def longbench_records(count: int, length: int, seed: int) -> list[dict]:
    """Two-hop questions over numbered passages in LongBench's format, with documents of about `length` tokens."""
    records = []
    for number in range(count):
        sentences = (length - AROUND) // (SENTENCE_TOKENS + 1)
        document = _made("2wikimqa", length, sentences, f"{seed}/{number}", {"films": 12, "per_passage": 8})
        question = document.questions[0]
        records.append(
            {
                "input": question.answer_prefix,
                "context": _text(document)[0],
                "answers": list(question.answers),
                "length": sum(map(len, document.sentences)),
                "dataset": "2wikimqa",
                "language": "en",
                "all_classes": None,
                "_id": f"{seed}-{number}",
            }
        )
    return records


def notes(documents: int, sentences: int, seed: int, **statements: Any) -> tuple[list[str], list[Question]]:
    """Several documents with statements scattered over them, and the questions that the statements answer.

    Parameters
    ----------
    sentences
        Number of sentences in each document.
    statements
        Number of statements of each kind: keyword arguments of `make_document`.
    """
    whole = make_document(Random(f"notes/{seed}"), documents * sentences, **statements)
    starts = range(0, documents * sentences, sentences)
    texts = [" ".join(map(sentence_text, whole.sentences[start : start + sentences])) for start in starts]
    return texts, whole.questions


def _made(name: str, length: int, sentences: int, seed: str, options: dict[str, Any]) -> Document:
    """A document determined by the arguments alone; if it is too short for its statements, the error names the task."""
    try:
        return make_document(Random(f"{name}/{length}/{seed}"), sentences, **options)
    except ValueError as error:
        raise ValueError(f"{name} at a length of {length} tokens: {error}") from None


def _example(name: str, document: Document, labels: dict[str, int | float | str]) -> Example:
    question = document.questions[0]
    text, spans = _text(document)
    return Example(
        name,
        BEFORE,
        text,
        "\n" + question.text,
        question.answers,
        " " + question.answer_prefix,
        labels=labels,
        evidence=tuple(spans[i] for i in question.evidence),
    )


def _text(document: Document) -> tuple[str, list[tuple[int, int]]]:
    """The document's text, with a blank line before each passage, and the character spans of its sentences."""
    parts = [sentence_text(sentence) for sentence in document.sentences]
    gaps = ["\n\n" if sentence[0] == "Passage" else " " for sentence in document.sentences[1:]]
    pieces = [part + gap for part, gap in zip(parts, [*gaps, ""], strict=True)]
    starts = list(accumulate(map(len, pieces), initial=0))[:-1]
    return "".join(pieces), [(start, start + len(part)) for start, part in zip(starts, parts, strict=True)]
