"""Where the explorer's prompts come from: a profile's benchmark, or your own text."""

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from ragkv.benchmarks import Example, Task
from ragkv.benchmarks.metrics import string_match_all
from ragkv.experiment.items import Item, make_item
from ragkv.experiment.profile import Profile
from ragkv.prompt.documents import read_documents
from ragkv.rag.rag import INSTRUCTION, check_question


class Source(Hashable, Protocol):
    """A prompt before it is tokenised for a model. Hashable, so that results for it can be cached."""

    def item(self, profile: Profile, tokenizer: PreTrainedTokenizerBase, root: Path) -> tuple[Item, Task]:
        """The prompt, cut into chunks as the profile says, and the task that scores its answer."""


@dataclass(frozen=True)
class FromBenchmark:
    """A prompt of a benchmark. If the benchmark names no evidence, it is every place where an answer occurs.

    Attributes
    ----------
    number
        Which prompt of the task, counted from 0.
    """

    benchmark: str
    task: str
    number: int = 0

    def item(self, profile: Profile, tokenizer: PreTrainedTokenizerBase, root: Path) -> tuple[Item, Task]:
        """The prompt and its task.

        Raises
        ------
        ValueError
            The profile has no such benchmark, task or prompt.
        FileNotFoundError
            The benchmark's data does not exist.
        """
        benchmark = profile.benchmark(self.benchmark)
        task = benchmark.task(self.task)
        examples, _ = benchmark.examples(self.task, tokenizer, root)
        if not 0 <= self.number < len(examples):
            raise ValueError(f"{self.benchmark}, {self.task}: there is no prompt {self.number + 1} of {len(examples)}")
        example = _with_evidence(examples[self.number])
        return make_item(tokenizer, example, task, profile, benchmark.max_tokens), task


@dataclass(frozen=True)
class OwnText:
    """Your own document and question.

    Attributes
    ----------
    answer
        The expected answer, if you know one. The evidence is every place where it occurs.
    """

    document: str
    question: str
    answer: str = ""
    max_new_tokens: int = 32

    def item(self, profile: Profile, tokenizer: PreTrainedTokenizerBase, root: Path) -> tuple[Item, Task]:
        """The text as a prompt.

        Raises
        ------
        ValueError
            The question or the document is empty or not text.
        """
        question = check_question(self.question)
        (document,) = read_documents([self.document])
        answers = (self.answer.strip(),) if self.answer.strip() else ()
        example = Example("your own text", INSTRUCTION, document.text, f"\n{question.strip()}", answers)
        task = Task(_scores, self.max_new_tokens)
        return make_item(tokenizer, _with_evidence(example), task, profile), task


def _scores(prediction: str, answers: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
    return {"string_match": string_match_all(prediction, answers)} if answers else {}


def _with_evidence(example: Example) -> Example:
    """The example, with all occurrences of its answers as evidence unless it already names some."""
    if example.evidence:
        return example
    spans = tuple(span for answer in example.answers for span in _mentions(example.text, answer))
    return replace(example, evidence=spans)


def _mentions(text: str, answer: str) -> Iterator[tuple[int, int]]:
    """Where an answer occurs in a text as whole words: (start, stop) in characters."""
    if answer.strip():
        yield from (match.span() for match in re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", text))
