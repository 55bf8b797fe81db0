"""What a benchmark provides: examples (a document, a question, its answers) and how predictions are scored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import ClassVar

from pydantic import Field, model_validator
from transformers import PreTrainedTokenizerBase

from ragkv.options import Registry
from ragkv.parameters import Parameters


@dataclass(frozen=True)
class Example:
    """One question over one document.

    Attributes
    ----------
    id
        Its name within the task.
    before, document, after, answer_prefix
        The prompt's texts; joined as they are, they are the prompt. The last one begins the model's answer. A document
        given as passages is chunked at these.
    answers
        What counts as right; the task's scores say how.
    classes
        What the answer is to be chosen from, for classification.
    labels
        What results are grouped by: ``length``, ``depth``, ``bucket``.
    evidence
        Where in the document the answer follows from, as (start, stop) characters.
    """

    id: str
    before: str
    document: str | tuple[str, ...]
    after: str
    answers: tuple[str, ...]
    answer_prefix: str = ""
    classes: tuple[str, ...] = ()
    labels: Mapping[str, int | float | str] = field(default_factory=dict)
    evidence: tuple[tuple[int, int], ...] = ()

    @property
    def text(self) -> str:
        """The whole document."""
        return self.document if isinstance(self.document, str) else "".join(self.document)


# Columns that tell rows of results apart, or that are compared; labels become columns too.
COLUMNS = {"prompt", "method", "selector", "ratio", "prediction", "answers", "score", "share", "recomputed"}
Scores = Callable[[str, Sequence[str], Sequence[str]], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """How a task is answered and scored.

    Attributes
    ----------
    scores
        ``scores(prediction, answers, classes)``: scores from 0 to 1 by name, the task's own first.
    max_new_tokens
        The answer's longest length.
    chat
        Whether the prompt goes into the tokenizer's chat template.
    stop
        A text at which the answer ends.
    """

    scores: Scores
    max_new_tokens: int
    chat: bool = True
    stop: str | None = None

    def score(self, prediction: str, answers: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
        """The prediction's scores.

        Raises
        ------
        ValueError
            There is no score, or one is not a number from 0 to 1.
        """
        scores = self.scores(prediction, answers, classes)
        if not isinstance(scores, dict) or not scores:
            raise ValueError(f"the task's scores are {scores!r:.80}: they must be numbers from 0 to 1 by name")
        for name, score in scores.items():
            if not isinstance(score, Real) or not 0 <= score <= 1:
                raise ValueError(f"the task's score {name!r} is {score!r:.80}: it must be a number from 0 to 1")
        return {name: float(score) for name, score in scores.items()}

    def ended(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], bool] | None:
        """Says of an answer's ids whether it ends there (`ragkv.decode`'s ``ended``); None where nothing ends it."""
        stop = self.stop
        if stop is None:
            return None
        return lambda ids: stop in tokenizer.decode(ids, skip_special_tokens=True).lstrip(stop)


class TaskParameters(Parameters):
    """What a profile says of one task; benchmarks add their own.

    Attributes
    ----------
    prompts
        How many.
    ratios
        Shares of the document to recompute.
    seed
        Of what is generated or drawn.
    max_new_tokens
        Instead of the task's own.
    """

    prompts: int = Field(default=200, ge=1)
    ratios: list[float] = Field(default=[0.15], min_length=1)
    seed: int = 0
    max_new_tokens: int | None = Field(default=None, ge=1)


class Benchmark(Parameters, ABC):
    """A benchmark as a profile describes it: where its data come from, and its tasks.

    A new benchmark is a subclass decorated with ``@register("its_name")``. A profile names the file that holds it in
    ``modules``, and gives its parameters in ``benchmarks``.

    Attributes
    ----------
    tasks
        The tasks to run, by name.
    max_tokens
        A longer prompt loses the middle of its document.
    notebook
        The notebook in notebooks/ that evaluates and shows this benchmark. The default fits any benchmark.
    label
        The example label (``"length"``) by which tables tell a task's results apart; None: one column per task.
    """

    notebook: ClassVar[str] = "03_benchmark"
    label: ClassVar[str | None] = None

    tasks: Mapping[str, TaskParameters] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=16)

    @model_validator(mode="after")
    def _known_tasks(self) -> "Benchmark":
        for name in self.tasks:
            self.task(name)
        return self

    @abstractmethod
    def task(self, name: str) -> Task:
        """A task by name.

        Raises
        ------
        ValueError
            Unknown; the message lists those that exist.
        """

    @abstractmethod
    def examples(self, name: str, tokenizer: PreTrainedTokenizerBase, root: Path) -> tuple[list[Example], list[str]]:
        """The task's examples, and what was left out: a line each, saying which and why.

        Parameters
        ----------
        root
            What relative paths are relative to.
        """

    def files(self, root: Path) -> list[Path]:
        """The files and folders that examples are read from; when they change, prompts are made again.

        By default these are the benchmark's parameters that are paths of something that exists. A benchmark that
        overrides this also names what does not exist, which is then said before a run starts.

        Parameters
        ----------
        root
            What relative paths are relative to.
        """
        texts = [value for name, value in self if name != "tasks" and isinstance(value, str) and value]
        return [root / text for text in texts if exists(root / text)]

    @abstractmethod
    def sizes(self, name: str) -> list[tuple[int, int]]:
        """(prompts, tokens) of the task, at most: for planning, before any data is read."""


def check_examples(where: str, examples: Sequence[Example]) -> None:
    """Check what is taken from a benchmark as it is.

    Raises
    ------
    ValueError
        Two examples share an id, by which rows of results are found, or an id or an answer is not a text.
    """
    seen = set()
    for number, example in enumerate(examples, 1):
        if not isinstance(example.id, str) or example.id in seen:
            raise ValueError(f"{where}: example {number} has the id {example.id!r}: ids are texts, each different")
        seen.add(example.id)
        if isinstance(example.answers, str) or not all(isinstance(answer, str) for answer in example.answers):
            raise ValueError(f"{where}, {example.id}: the answers are {example.answers!r:.80}, not several texts")
        if taken := example.labels.keys() & COLUMNS:
            raise ValueError(f"{where}, {example.id}: tables have a column {min(taken)!r}: give the label another name")


def exists(path: Path) -> bool:
    """Whether a path leads to something; one that cannot be a path leads to nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a path, or with a null character
        return False


BENCHMARKS: Registry[Benchmark] = Registry("benchmark")
register = BENCHMARKS.register
