"""RULER (arXiv 2404.06654): generated for a token budget, or read from the official generator's files."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, ClassVar

from pydantic import Field, field_validator
from transformers import PreTrainedTokenizerBase

from ragkv.benchmarks import haystack, ruler_questions
from ragkv.benchmarks.base import Benchmark, Example, Task, TaskParameters, register
from ragkv.benchmarks.metrics import string_match_all, string_match_part
from ragkv.benchmarks.ruler_files import official_examples, one_folder_each
from ragkv.benchmarks.ruler_retrieval import RETRIEVAL
from ragkv.benchmarks.ruler_tasks import Drawn, draw_common_words, draw_frequent_words, draw_tracking
from ragkv.options import choose
from ragkv.prompt.templates import encode

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

    lengths: list[Annotated[int, Field(ge=1)]] = Field(default=[4096], min_length=1)

    @field_validator("lengths")
    @classmethod
    def _once_each(cls, given: list[int]) -> list[int]:
        if twice := sorted({str(length) for length in given if given.count(length) > 1}):
            raise ValueError(f"{', '.join(twice)} given more than once")
        return given


@register("ruler")
class Ruler(Benchmark):
    """RULER's thirteen tasks.

    Attributes
    ----------
    source
        ``generated``; ``tiny``, in the embedded models' language; or a folder of the official generator's files:
        ``<length>/data/<task>/validation.jsonl``, ``<length>/<task>/validation.jsonl``, ``<length>/<task>.jsonl``, and
        the same without the length's folder if there is one length.
    haystack
        What needles are hidden in, see `ragkv.benchmarks.haystack`.
    squad, hotpotqa
        The files that the questions of ``qa_1`` and ``qa_2`` come from. No question is asked twice, so that there may
        be fewer prompts than asked for.
    """

    notebook: ClassVar = "05_ruler"
    label: ClassVar = "length"

    source: str = GENERATED
    haystack: str = haystack.GENERATED
    squad: str | None = None
    hotpotqa: str | None = None
    tasks: Mapping[str, RulerTask] = Field(min_length=1)

    def task(self, name: str) -> Task:
        if self.source == TINY:
            from ragkv.benchmarks.tiny import RULER_TASKS  # which imports this package

            choose("task of RULER in the small language", name, dict.fromkeys(RULER_TASKS))
            return Task(_scores(string_match_all), 24)
        new = choose("task of RULER", name, NEW_TOKENS)
        return Task(_scores(string_match_part if name.startswith("qa") else string_match_all), new)

    def examples(self, name: str, tokenizer: PreTrainedTokenizerBase, root: Path) -> tuple[list[Example], list[str]]:
        parameters = self.tasks[name]
        examples: list[Example] = []
        skipped: list[str] = []
        if self.source not in (GENERATED, TINY):
            one_folder_each(self.source, name, parameters.lengths, root)
        draw, most = self._drawer(name, root) if self.source == GENERATED else (None, parameters.prompts)
        for length in parameters.lengths:
            if self.source == TINY:
                from ragkv.benchmarks.tiny import ruler_example

                examples += [ruler_example(name, length, parameters.seed, n) for n in range(parameters.prompts)]
            elif draw:
                for number in range(most):
                    examples.append(self._fitted(draw(length, number), name, length, number, tokenizer))
            else:
                read, left_out = official_examples(self.source, name, length, parameters.prompts, root)
                examples, skipped = examples + read, skipped + left_out
        return examples, skipped

    def sizes(self, name: str) -> list[tuple[int, int]]:
        prompts, lengths = self.tasks[name].prompts, self.tasks[name].lengths
        return [(prompts, min(length, self.max_tokens or length)) for length in lengths]

    def _drawer(self, name: str, root: Path) -> tuple[Callable[[int, int], Drawn], int]:
        """What draws the example of a length and number, and how many there are."""
        prompts, seed = self.tasks[name].prompts, self.tasks[name].seed

        def rng(length: int, number: int) -> Random:
            return Random(f"{name}/{length}/{seed}/{number}")

        if name.startswith("qa"):
            questions = self._questions(name, root)
            count = len(questions.questions)
            order = Random(f"{name}/{seed}").sample(range(count), count)
            return lambda length, number: questions.draw(rng(length, number), order[number]), min(prompts, count)
        texts = haystack.sentences(self.haystack, root)
        return lambda length, number: DRAW[name](own := rng(length, number), texts(own)), prompts

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
        laid = drawn.layout(_largest(tokens, drawn.smallest, least, room))
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


def _largest(tokens: Callable[[int], int], smallest: int, least: int, room: int) -> int:
    """The largest size whose tokens fit into `room`, `smallest` being one that does, with its `least` tokens.

    Tokens grow nearly evenly with the size, so that a line through two sizes leads close to it.
    """
    low, high, step = (smallest, least), (0, 0), 8
    while not high[0]:  # low fits
        size = low[0] + step
        if (found := tokens(size)) > room:
            high = size, found
        elif found == low[1]:  # nothing more is there to be put in
            return low[0]
        else:
            step = (room - found) * (size - low[0]) // (found - low[1]) + 2
            low = size, found
    middle = True
    while high[0] - low[0] > 1:
        middle = not middle  # every other time, as lines may come near from one side only
        share = 0.5 if middle else (room - low[1] + 1) / (high[1] - low[1])
        size = min(max(low[0] + int(share * (high[0] - low[0])), low[0] + 1), high[0] - 1)
        if (found := tokens(size)) <= room:
            low = size, found
        else:
            high = size, found
    return low[0]


def _scores(
    match: Callable[[str, Sequence[str]], float],
) -> Callable[[str, Sequence[str], Sequence[str]], dict[str, float]]:
    def scores(prediction: str, answers: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
        printable = re.sub(r"[\x00-\x1f]", "\n", prediction.strip()).strip()
        return {"string_match": match(printable, answers)}

    return scores
