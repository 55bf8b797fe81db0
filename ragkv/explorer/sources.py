"""Where a prompt to look at comes from: a profile's benchmark, or one's own text."""

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
    """What is asked, before it is in a model's tokens; hashable, so that what follows from it can be kept."""

    def item(self, profile: Profile, tokenizer: PreTrainedTokenizerBase, root: Path) -> tuple[Item, Task]:
        """The prompt, cut as the profile says, and how its answer is judged."""


@dataclass(frozen=True)
class FromBenchmark:
    """A benchmark's prompt, `number` from 0 on. Where the benchmark names no evidence, it is where an answer stands."""

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
            The benchmark's data are not there.
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
    """A document and a question of one's own; with the `answer` that is expected, the evidence is where it stands."""

    document: str
    question: str
    answer: str = ""
    max_new_tokens: int = 32

    def item(self, profile: Profile, tokenizer: PreTrainedTokenizerBase, root: Path) -> tuple[Item, Task]:
        """The text as a prompt.

        Raises
        ------
        ValueError
            The question is empty, or there is no document, or it is not text.
        """
        question = check_question(self.question)
        (document,) = read_documents([self.document])
        answers = (self.answer.strip(),) if self.answer.strip() else ()
        example = Example("your own text", INSTRUCTION, document.text, f"\n{question.strip()}", answers)
        task = Task(_found, self.max_new_tokens)
        return make_item(tokenizer, _with_evidence(example), task, profile), task


def _found(prediction: str, answers: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
    return {"string_match": string_match_all(prediction, answers)} if answers else {}


def _with_evidence(example: Example) -> Example:
    if example.evidence:
        return example
    places = tuple(span for answer in example.answers for span in _mentions(example.text, answer))
    return replace(example, evidence=places)


def _mentions(text: str, answer: str) -> Iterator[tuple[int, int]]:
    """Where an answer stands in a text, as whole words, in characters."""
    if answer.strip():
        yield from (match.span() for match in re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", text))
