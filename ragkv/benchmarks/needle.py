"""Needle in a Haystack: facts hidden at a given depth of a long text, and a question that only they answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints, field_validator, model_validator
from transformers import PreTrainedTokenizerBase

from ragkv.benchmarks import metrics
from ragkv.benchmarks.base import Benchmark, Example, Task, TaskParameters, register
from ragkv.benchmarks.haystack import GENERATED, fill, haystack_files, sentences
from ragkv.options import choose
from ragkv.prompt.encoding import encode

TINY = "tiny"
BEFORE = "Here is a long text. Read it with care: you will be asked about it.\n\n"
AFTER = "\n\nUse nothing but the text above to answer, in one sentence.\nQuestion: {question}\nAnswer:"
NEEDLE = "In Ostrevalle, every newcomer is welcomed with a bowl of plum soup and must hum a tune before they may speak."

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Length = Annotated[int, Field(ge=1)]
Depth = Annotated[float, Field(ge=0, le=100)]


class NeedleTask(TaskParameters):
    """A grid of lengths and depths.

    Attributes
    ----------
    lengths
        Document lengths in tokens, needles included.
    depths
        Where the needle is hidden: 0 is the document's beginning, 100 its end. Several needles are spread evenly from
        there to the end.
    needles
        The facts to hide.
    answer
        What predictions are scored against; None means the needles themselves.
    prompts
        Number of prompts per length and depth.
    """

    prompts: int = Field(default=1, ge=1)
    lengths: list[Length] = Field(default=[512, 1000, 2000, 4000, 8000], min_length=1)
    depths: list[Depth] = Field(default=[0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100], min_length=1)
    needles: list[Text] = Field(default=[NEEDLE], min_length=1)
    question: Text = "What happens to a newcomer in Ostrevalle?"
    answer: Text | None = None

    @field_validator("lengths", "depths")
    @classmethod
    def _no_duplicates(cls, values: list[float]) -> list[float]:
        duplicates = sorted({f"{value:g}" for value in values if values.count(value) > 1})
        if duplicates:
            raise ValueError(f"{', '.join(duplicates)} given more than once")
        return values

    @model_validator(mode="after")
    def _has_its_own_question(self) -> "NeedleTask":
        if "needles" in self.model_fields_set and "question" not in self.model_fields_set:
            raise ValueError("these needles need a question of their own: give one that they answer")
        return self


@register("needle")
class Needle(Benchmark):
    """Needle in a Haystack.

    Attributes
    ----------
    haystack
        ``generated``, ``essays`` or a folder of .txt and .md files, see `ragkv.benchmarks.haystack`; or ``tiny``, the
        small language of the embedded models, which has its own needles, questions and answers.
    tasks
        Any names.
    """

    notebook: ClassVar = "04_needle"
    label: ClassVar = "length"

    haystack: Text = GENERATED
    tasks: Mapping[str, NeedleTask] = Field(min_length=1)

    def task(self, name: str) -> Task:
        choose("needle task", name, self.tasks)
        return Task(scores=_scores, max_new_tokens=64)

    def examples(self, name: str, tokenizer: PreTrainedTokenizerBase, root: Path) -> tuple[list[Example], list[str]]:
        parameters: NeedleTask = choose("needle task", name, self.tasks)
        make = self._maker(name, parameters, tokenizer, root)
        grid = [(length, depth) for length in parameters.lengths for depth in parameters.depths]
        return [make(*cell, number) for cell in grid for number in range(parameters.prompts)], []

    def files(self, root: Path) -> list[Path]:
        return [] if self.haystack == TINY else haystack_files(self.haystack, root)

    def sizes(self, name: str) -> list[tuple[int, int]]:
        parameters: NeedleTask = choose("needle task", name, self.tasks)
        count = len(parameters.depths) * parameters.prompts
        return [(count, min(length, self.max_tokens or length)) for length in parameters.lengths]

    def _maker(
        self, name: str, parameters: NeedleTask, tokenizer: PreTrainedTokenizerBase, root: Path
    ) -> Callable[[int, float, int], Example]:
        """A function that makes the example for a length, a depth and a number."""
        if self.haystack == TINY:
            from ragkv.benchmarks.tiny import needle_example

            return lambda length, depth, number: needle_example(name, length, depth, parameters.seed, number)
        texts = sentences(self.haystack, root)
        return partial(_example, name, parameters, tokenizer, texts)


def _scores(prediction: str, answers: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
    (answer,) = answers
    return {
        "rouge1_f": metrics.rouge1_f(prediction, answer),
        "token_overlap": metrics.token_overlap(prediction, answer),
    }


def _example(
    name: str,
    parameters: NeedleTask,
    tokenizer: PreTrainedTokenizerBase,
    texts: Callable[[Random], Iterator[str]],
    length: int,
    depth: float,
    number: int,
) -> Example:
    needles = parameters.needles
    shortest = len(encode(tokenizer, " ".join(needles)))
    if shortest > length:
        raise ValueError(
            f"needle task {name!r}: its needles have {shortest} tokens, more than a document of {length}. "
            f"Leave the length {length} out or hide less"
        )
    rng = Random(f"{name}/{length}/{depth:g}/{parameters.seed}/{number}")
    hay = fill(texts(rng), tokenizer, length)
    tokens = [len(encode(tokenizer, sentence)) for sentence in hay]
    document, evidence = _hide(needles, hay, tokens, depth)
    while hay and len(encode(tokenizer, document)) > length:  # make room for the needles
        del hay[-1], tokens[-1]
        document, evidence = _hide(needles, hay, tokens, depth)
    return Example(
        f"{name}-{length}-{depth:g}-{number:02d}",
        BEFORE,
        document,
        AFTER.format(question=parameters.question),
        (parameters.answer or " ".join(needles),),
        labels={"length": length, "depth": depth},
        evidence=evidence,
    )


def _hide(
    needles: Sequence[str], hay: Sequence[str], tokens: Sequence[int], depth: float
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The document, and the character spans of its needles.

    Needle i of n (from 0) belongs at a depth of ``depth + i * (100 - depth) / n`` per cent of the hay's tokens; it is
    put at the nearest end of a sentence.
    """
    ends = list(accumulate(tokens, initial=0))
    needles_at: list[list[str]] = [[] for _ in ends]
    for i, needle in enumerate(needles):
        wanted = (depth + i * (100 - depth) / len(needles)) / 100 * ends[-1]
        nearest = min(range(len(ends)), key=lambda place: abs(ends[place] - wanted))
        needles_at[nearest].append(needle)

    # (text, is a needle)
    parts = [(needle, True) for needle in needles_at[0]]
    for sentence, behind in zip(hay, needles_at[1:], strict=True):
        parts.append((sentence, False))
        parts += [(needle, True) for needle in behind]

    starts = accumulate((len(text) + 1 for text, _ in parts), initial=0)
    evidence = tuple(
        (start, start + len(text)) for start, (text, is_needle) in zip(starts, parts, strict=False) if is_needle
    )
    return " ".join(text for text, _ in parts), evidence
