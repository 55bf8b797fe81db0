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
from ragkv.benchmarks.haystack import GENERATED, fill, sentences
from ragkv.options import choose
from ragkv.prompt.templates import encode

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
        The document's tokens, needles included.
    depths
        Where the needle stands: 0 is the document's beginning, 100 its end. Several needles divide the way from there
        to the end evenly.
    needles
        The facts to hide.
    answer
        What is scored against; the needles themselves if there is none.
    prompts
        How many per length and depth.
    """

    prompts: int = Field(default=1, ge=1)
    lengths: list[Length] = Field(default=[512, 1000, 2000, 4000, 8000], min_length=1)
    depths: list[Depth] = Field(default=[0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100], min_length=1)
    needles: list[Text] = Field(default=[NEEDLE], min_length=1)
    question: Text = "What happens to a newcomer in Ostrevalle?"
    answer: Text | None = None

    @field_validator("lengths", "depths")
    @classmethod
    def _once_each(cls, given: list[float]) -> list[float]:
        twice = sorted({f"{some:g}" for some in given if given.count(some) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} given more than once")
        return given

    @model_validator(mode="after")
    def _answerable(self) -> "NeedleTask":
        if "needles" in self.model_fields_set and "question" not in self.model_fields_set:
            raise ValueError("these needles need a question of their own: give one that they answer")
        return self


@register("needle")
class Needle(Benchmark):
    """Needle in a Haystack.

    Attributes
    ----------
    haystack
        ``generated``; or a folder of .txt and .md files, see `ragkv.benchmarks.haystack`; or ``tiny``, the small
        language of the embedded models, which brings needles, question and answer of its own.
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

    def sizes(self, name: str) -> list[tuple[int, int]]:
        parameters: NeedleTask = choose("needle task", name, self.tasks)
        count = len(parameters.depths) * parameters.prompts
        return [(count, min(length, self.max_tokens or length)) for length in parameters.lengths]

    def _maker(
        self, name: str, parameters: NeedleTask, tokenizer: PreTrainedTokenizerBase, root: Path
    ) -> Callable[[int, float, int], Example]:
        """What makes the example of a length, depth and number."""
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
    while hay and len(encode(tokenizer, document)) > length:  # makes room for the needles
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
    """The document, and where its needles stand, each at the sentence's end nearest to its share of the hay's tokens.

    Of n needles, number i (from 0) stands at a depth of ``depth + i * (100 - depth) / n`` per cent.
    """
    ends = list(accumulate(tokens, initial=0))
    places: list[list[str]] = [[] for _ in ends]
    for i, needle in enumerate(needles):
        wanted = (depth + i * (100 - depth) / len(needles)) / 100 * ends[-1]
        places[min(range(len(ends)), key=lambda place: abs(ends[place] - wanted))].append(needle)
    hidden = [(needle, True) for needle in places[0]]
    for sentence, here in zip(hay, places[1:], strict=True):
        hidden += [(sentence, False), *((needle, True) for needle in here)]
    starts = accumulate((len(text) + 1 for text, _ in hidden), initial=0)
    evidence = tuple(
        (start, start + len(text)) for start, (text, needle) in zip(starts, hidden, strict=False) if needle
    )
    return " ".join(text for text, _ in hidden), evidence
