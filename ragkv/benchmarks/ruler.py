"""RULER (arXiv 2404.06654): generated for a token budget, or read from the official generator's files."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from ragkv.benchmarks import haystack, ruler_questions
from ragkv.benchmarks.base import Benchmark, Example, Task, TaskParameters, choose
from ragkv.benchmarks.metrics import string_match_all, string_match_part
from ragkv.benchmarks.records import Record, read_records, require
from ragkv.benchmarks.ruler_retrieval import RETRIEVAL
from ragkv.benchmarks.ruler_tasks import Drawn, draw_common_words, draw_frequent_words, draw_tracking
from ragkv.prompt import encode

GENERATED, TINY = "generated", "tiny"
NEW_TOKENS = {
    **dict.fromkeys(RETRIEVAL, 128),
    "vt": 30,
    "cwe": 120,
    "fwe": 50,
    "qa_1": 32,
    "qa_2": 32,
}


DRAW: dict[str, Callable[[Random, Iterator[str]], Drawn]] = {
    **{name: task.draw for name, task in RETRIEVAL.items()},
    "vt": draw_tracking,
    "cwe": draw_common_words,
    "fwe": draw_frequent_words,
}


class RulerTask(TaskParameters):
    """`lengths` in tokens: of the whole prompt and the longest answer; `prompts` are per length."""

    lengths: list[int] = Field(default=[4096], min_length=1)


class Ruler(Benchmark):
    """RULER's thirteen tasks.

    Attributes
    ----------
    source
        ``generated``; ``tiny``, in the embedded models' language; or a folder of the official generator's files:
        ``<length>/data/<task>/validation.jsonl``, ``<length>/<task>/validation.jsonl``, ``<length>/<task>.jsonl``, and
        the same without the length's folder.
    haystack
        What needles are hidden in, see `ragkv.benchmarks.haystack`.
    squad, hotpotqa
        The files that the questions of ``qa_1`` and ``qa_2`` come from.
    """

    source: str = GENERATED
    haystack: str = haystack.GENERATED
    squad: str | None = None
    hotpotqa: str | None = None
    tasks: Mapping[str, RulerTask] = Field(min_length=1)

    def task(self, name: str) -> Task:
        if self.source == TINY:
            from ragkv.tiny.tasks import RULER_TASKS  # which imports this package

            choose("task of RULER in the small language", name, dict.fromkeys(RULER_TASKS))
            return Task(_scores(string_match_all), 24)
        new = choose("task of RULER", name, NEW_TOKENS)
        return Task(_scores(string_match_part if name.startswith("qa") else string_match_all), new)

    def examples(self, name: str, tokenizer: PreTrainedTokenizerBase, root: Path) -> tuple[list[Example], list[str]]:
        parameters = self.tasks[name]
        examples, skipped = [], []
        questions = self._questions(name, root) if self.source == GENERATED and name.startswith("qa") else None
        for length in parameters.lengths:
            if self.source == TINY:
                from ragkv.tiny.tasks import ruler_example

                examples += [ruler_example(name, length, parameters.seed, n) for n in range(parameters.prompts)]
            elif self.source == GENERATED:
                for number in range(parameters.prompts):
                    drawn = self._draw(name, length, number, questions, root)
                    examples.append(self._fitted(drawn, name, length, number, tokenizer))
            else:
                for number, (where, record) in enumerate(self._read(name, length, root)[: parameters.prompts]):
                    require(record, where, {"input": str, "outputs": list})
                    if record["outputs"]:
                        examples.append(_official(f"{name}-{length}-{number:04d}", length, record))
                    else:
                        skipped.append(f"{where}: no outputs")
        return examples, skipped

    def sizes(self, name: str) -> list[tuple[int, int]]:
        return [(self.tasks[name].prompts, length) for length in self.tasks[name].lengths]

    def _draw(
        self, name: str, length: int, number: int, questions: ruler_questions.Questions | None, root: Path
    ) -> Drawn:
        seed = self.tasks[name].seed
        rng = Random(f"{name}/{length}/{seed}/{number}")
        if questions is None:
            return DRAW[name](rng, haystack.sentences(self.haystack, root, rng))
        count = len(questions.questions)
        return questions.draw(rng, Random(f"{name}/{seed}").sample(range(count), count)[number % count])

    def _fitted(self, drawn: Drawn, name: str, length: int, number: int, tokenizer: PreTrainedTokenizerBase) -> Example:
        """The example at the largest size that fits into `length` tokens with its answer."""
        room = length - (self.tasks[name].max_new_tokens or NEW_TOKENS[name])

        def tokens(size: int) -> int:
            laid = drawn.layout(size)
            return len(encode(tokenizer, laid.before + laid.document + laid.after + laid.answer_prefix))

        if (least := tokens(drawn.smallest)) > room:
            raise ValueError(
                f"{name} at a length of {length} tokens: its shortest prompt and its answer take "
                f"{least + length - room}; ask for a longer one"
            )
        laid = drawn.layout(_largest(tokens, drawn.smallest, room))
        return Example(
            f"{name}-{length}-{number:04d}",
            laid.before,
            laid.document,
            laid.after,
            laid.answers,
            laid.answer_prefix,
            labels={"length": length},
            evidence=laid.evidence,
        )

    def _questions(self, name: str, root: Path) -> ruler_questions.Questions:
        field, read = (
            ("squad", ruler_questions.read_squad) if name == "qa_1" else ("hotpotqa", ruler_questions.read_hotpotqa)
        )
        path = getattr(self, field)
        if path is None:
            raise ValueError(f"{name} needs the benchmark's file of questions: give its path as {field}")
        return read(root / path)

    def _read(self, name: str, length: int, root: Path) -> list[Record]:
        folder = Path(self.source)
        for place in (folder / str(length), folder):
            for inner, stem in ((f"data/{name}", "validation"), (name, "validation"), (".", name)):
                if (root / place / inner / f"{stem}.jsonl").exists():
                    return read_records(str(place / inner), stem, root)
        return read_records(str(folder), name, root)  # which says what was looked for


def _largest(tokens: Callable[[int], int], smallest: int, room: int) -> int:
    """The largest size whose tokens fit into `room`, `smallest` being one that does."""
    low, step = smallest, 1
    while tokens(low + step) <= room:
        low, step = low + step, step * 2
        if step > 4 * room:  # nothing more is there to be put in
            return low
    high = low + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tokens(middle) <= room else (low, middle)
    return low


def _scores(
    match: Callable[[str, Sequence[str]], float],
) -> Callable[[str, Sequence[str], Sequence[str]], dict[str, float]]:
    def scores(prediction: str, answers: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
        printable = re.sub(r"[\x00-\x1f]", "\n", prediction.strip()).strip()
        return {"string_match": match(printable, answers)}

    return scores


def _official(name: str, length: int, record: dict) -> Example:
    """The official generator's record; its input split so that the parts joined are the input again."""
    text = record["input"]
    start = text.rfind("\nQuestion:") + 1 or text.rstrip().rfind("\n") + 1
    line = len(re.match(r"[^\n]*\n+|", text[:start])[0])  # type: ignore[index]
    if line > 500:  # the text goes on behind the instruction, on the same line
        line = 0
    before = line or len(re.match(r"(?:[A-Z][^.\n]*\. )*", text[:start])[0])  # type: ignore[index]
    return Example(
        name,
        text[:before],
        text[before:start],
        text[start:],
        tuple(map(str, record["outputs"])),
        record.get("answer_prefix") or "",
        labels={"length": length},
    )
