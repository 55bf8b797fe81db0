"""LongBench (arXiv 2308.14508): examples from its own files, or from other records with the same fields."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from ragkv.benchmarks.base import Benchmark, Example, Task, TaskParameters, register
from ragkv.benchmarks.longbench_tasks import (
    ANSWER_FORMS,
    BUCKETS,
    CLASSIFICATION,
    LONGBENCH_E,
    TASKS,
    WORDINGS,
    WORDS,
    Wording,
)
from ragkv.benchmarks.metrics import qa_f1
from ragkv.benchmarks.records import HUB, read_json, read_records, require, require_texts
from ragkv.options import choose

TINY = "tiny"


class LongBenchTask(TaskParameters):
    """`length` is the prompt length in tokens of generated records (source ``tiny``)."""

    length: int = Field(default=1024, ge=128)


@register("longbench")
class LongBench(Benchmark):
    """LongBench: its 21 tasks, and the 13 tasks of LongBench-E under the names ``<task>_e``.

    Attributes
    ----------
    source
        Where to read records from, see `ragkv.benchmarks.records`; ``tiny`` generates them in the language of the
        embedded models.
    prompts_file
        The benchmark's own ``dataset2prompt.json``, to use its prompts instead of this project's.
    """

    notebook: ClassVar = "03_longbench"

    source: str
    prompts_file: str | None = None
    tasks: Mapping[str, LongBenchTask] = Field(min_length=1)

    def task(self, name: str) -> Task:
        known = ["2wikimqa"] if self.source == TINY else [*TASKS, *(f"{task}_e" for task in LONGBENCH_E)]
        choose("task of LongBench", name, dict.fromkeys(known))
        return TASKS[name.removesuffix("_e")]

    def examples(self, name: str, tokenizer: PreTrainedTokenizerBase, root: Path) -> tuple[list[Example], list[str]]:
        parameters = self.tasks[name]
        if self.source == TINY:
            from ragkv.benchmarks.tiny import LONGBENCH_WORDING, longbench_records  # imports this package

            generated = longbench_records(parameters.prompts, parameters.length, parameters.seed)
            records = [(f"generated record {number}", record) for number, record in enumerate(generated, 1)]
            wording = LONGBENCH_WORDING
        else:
            records = read_records(self.source, name, root)
            wording = self._wording(name, root)
        examples: list[Example] = []
        skipped: list[str] = []
        for number, (where, record) in enumerate(records[: parameters.prompts]):
            example = _example(name, number, where, record, wording)
            if isinstance(example, Example):
                examples.append(example)
            else:
                skipped.append(example)
        return examples, skipped

    def files(self, root: Path) -> list[Path]:
        records = [] if self.source == TINY or self.source.startswith(HUB) else [root / self.source]
        return records + [root / file for file in [self.prompts_file] if file is not None]

    def sizes(self, name: str) -> list[tuple[int, int]]:
        length = self.tasks[name].length if self.source == TINY else 10_000  # roughly LongBench's average
        return [(self.tasks[name].prompts, min(length, self.max_tokens or length))]

    def _wording(self, name: str, root: Path) -> Wording:
        task = name.removesuffix("_e")
        if self.prompts_file is None:
            return WORDINGS[task]
        path = root / self.prompts_file
        if not path.is_file():
            raise FileNotFoundError(f"{path.resolve()} is not there: prompts_file must name a file with the prompts")
        prompts = read_json(path)
        try:
            before, after = prompts[task].split("{context}")
        except (KeyError, AttributeError, TypeError, ValueError):
            raise ValueError(
                f"{path}: it must be a JSON object in which {task!r} is a text that contains {{context}} once"
            ) from None
        return Wording(before, after)


def _example(task: str, number: int, where: str, record: dict, wording: Wording) -> Example | str:
    """The record as an example, or the reason for skipping it."""
    if "chunks" in record:  # the research code's layout, in which documents are already chunked
        require(record, where, {"question": str})
        document: str | tuple[str, ...] = require_texts(record, where, "chunks")
        question = record["question"]
    else:
        require(record, where, {"context": (str, list), "input": str})
        document, question = record["context"], record["input"]
        if isinstance(document, list):
            document = require_texts(record, where, "context")
    answers = tuple(answer for answer in require_texts(record, where, "answers") if answer.strip())
    classes = () if record.get("all_classes") is None else require_texts(record, where, "all_classes")
    if not answers:
        return f"{where}: no answers"
    if not "".join(document).strip():
        return f"{where}: the document is empty"
    _check_answers(task.removesuffix("_e"), where, answers, classes)
    labels: dict[str, int | float | str] = {"bucket": _bucket(record, where)} if task.endswith("_e") else {}
    filled = wording.filled(question)
    return Example(
        f"{task}-{number:04d}",
        filled.before,
        document,
        filled.after,
        answers,
        filled.answer_prefix,
        classes=classes,
        labels=labels,
    )


def _check_answers(task: str, where: str, answers: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse answers that no prediction could match."""
    if task in CLASSIFICATION:
        if not classes:
            raise ValueError(f"{where}: {task} needs the field 'all_classes', a list of the classes to choose from")
        for answer in answers:
            if answer not in classes:
                raise ValueError(f"{where}: the answer {answer!r} is none of the record's classes (all_classes)")
    if task in WORDS and not any(qa_f1(answer, answer) for answer in answers):
        raise ValueError(f"{where}: no prediction matches the answer {answers[0]!r}: it has no words but articles")
    if task in ANSWER_FORMS:
        form, example = ANSWER_FORMS[task]
        for answer in answers:
            if not form.search(answer):
                raise ValueError(f"{where}: no prediction matches the answer {answer!r}: {task} needs {example!r}, say")


def _bucket(record: dict, where: str) -> str:
    """The LongBench-E bucket of a record's length."""
    require(record, where, {"length": (int, float)})
    length = record["length"]
    if not 0 <= length < float("inf"):
        raise ValueError(f"{where}: the field 'length' is {length}, expected the number of words of the document")
    return next(bucket for limit, bucket in BUCKETS if length < limit)
