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
from ragkv.prompt.encoding import encode

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
    """`lengths` are in tokens, and include the longest answer; `prompts` is the number of prompts per length."""

    lengths: list[Annotated[int, Field(ge=1)]] = Field(default=[4096], min_length=1)

    @field_validator("lengths")
    @classmethod
    def _no_duplicates(cls, lengths: list[int]) -> list[int]:
        if duplicates := sorted({str(length) for length in lengths if lengths.count(length) > 1}):
            raise ValueError(f"{', '.join(duplicates)} given more than once")
        return lengths


@register("ruler")
class Ruler(Benchmark):
    """RULER's thirteen tasks.

    Attributes
    ----------
    source
        ``generated``; ``tiny``, in the language of the embedded models; or a folder of files from the official
        generator: ``<length>/data/<task>/validation.jsonl``, ``<length>/<task>/validation.jsonl`` or
        ``<length>/<task>.jsonl``. With a single length, its folder may be left out.
    haystack
        The text that needles are hidden in, see `ragkv.benchmarks.haystack`.
    squad, hotpotqa
        Files with the questions of ``qa_1`` and ``qa_2``. Every question is used at most once, so there may be fewer
        prompts than the profile asks for.
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
            from ragkv.benchmarks.tiny import RULER_TASKS  # imports this package

            choose("task of RULER in the small language", name, dict.fromkeys(RULER_TASKS))
            return Task(_scores(string_match_all), 24)
        max_new_tokens = choose("task of RULER", name, NEW_TOKENS)
        match = string_match_part if name.startswith("qa") else string_match_all
        return Task(_scores(match), max_new_tokens)

    def examples(self, name: str, tokenizer: PreTrainedTokenizerBase, root: Path) -> tuple[list[Example], list[str]]:
        parameters = self.tasks[name]
        examples: list[Example] = []
        skipped: list[str] = []
        if self.source not in (GENERATED, TINY):
            one_folder_each(self.source, name, parameters.lengths, root)
        draw, count = self._drawer(name, root) if self.source == GENERATED else (None, parameters.prompts)
        for length in parameters.lengths:
            if self.source == TINY:
                from ragkv.benchmarks.tiny import ruler_example

                examples += [ruler_example(name, length, parameters.seed, n) for n in range(parameters.prompts)]
            elif draw:
                for number in range(count):
                    examples.append(self._fitted(draw(length, number), name, length, number, tokenizer))
            else:
                read, left_out = official_examples(self.source, name, length, parameters.prompts, root)
                examples += read
                skipped += left_out
        return examples, skipped

    def files(self, root: Path) -> list[Path]:
        if self.source == TINY:
            return []
        if self.source != GENERATED:
            return [root / self.source]
        questions = [root / file for file in (self.squad, self.hotpotqa) if file is not None]
        return haystack.haystack_files(self.haystack, root) + questions

    def sizes(self, name: str) -> list[tuple[int, int]]:
        prompts, lengths = self.tasks[name].prompts, self.tasks[name].lengths
        return [(prompts, min(length, self.max_tokens or length)) for length in lengths]

    def _drawer(self, name: str, root: Path) -> tuple[Callable[[int, int], Drawn], int]:
        """A function that draws the example for a length and a number, and the number of examples."""
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
        """The example at the largest size that, with its answer, fits into `length` tokens."""
        budget = length - (self.tasks[name].max_new_tokens or NEW_TOKENS[name])

        def tokens(size: int) -> int:
            layout = drawn.layout(size)
            return len(encode(tokenizer, layout.before + layout.document + layout.after + layout.answer_prefix))

        shortest = tokens(drawn.smallest)
        if shortest > budget:
            raise ValueError(
                f"{name} at a length of {length} tokens: its shortest prompt and its answer take "
                f"{shortest + length - budget}; ask for a longer one"
            )
        layout = drawn.layout(_largest(tokens, drawn.smallest, shortest, budget))
        return Example(
            f"{name}-{length}-{number:04d}",
            layout.before,
            layout.document,
            layout.after,
            layout.answers,
            layout.answer_prefix,
            labels={"length": length},
            evidence=layout.evidence,
        )

    def _questions(self, name: str, root: Path) -> ruler_questions.Questions:
        if name == "qa_1":
            field, path, read = "squad", self.squad, ruler_questions.read_squad
        else:
            field, path, read = "hotpotqa", self.hotpotqa, ruler_questions.read_hotpotqa
        if path is None:
            raise ValueError(f"{name} needs the benchmark's file of questions: give its path as {field}")
        return read(root / path)


def _largest(tokens: Callable[[int], int], smallest: int, shortest: int, budget: int) -> int:
    """The largest size whose tokens fit into `budget`. The `smallest` size fits; it has `shortest` tokens.

    Tokens grow almost linearly with the size, so interpolation between two sizes gets close to the answer.
    """
    low, low_tokens = smallest, shortest  # fits
    high, high_tokens = 0, 0  # does not fit, once it is known
    step = 8
    while not high:
        size = low + step
        size_tokens = tokens(size)
        if size_tokens > budget:
            high, high_tokens = size, size_tokens
        elif size_tokens == low_tokens:  # there is nothing more to put in
            return low
        else:
            step = (budget - size_tokens) * (size - low) // (size_tokens - low_tokens) + 2
            low, low_tokens = size, size_tokens

    bisect = True
    while high - low > 1:
        bisect = not bisect  # every other time: interpolation alone may approach from one side only
        share = 0.5 if bisect else (budget - low_tokens + 1) / (high_tokens - low_tokens)
        size = low + int(share * (high - low))
        size = min(max(size, low + 1), high - 1)
        size_tokens = tokens(size)
        if size_tokens <= budget:
            low, low_tokens = size, size_tokens
        else:
            high, high_tokens = size, size_tokens
    return low


def _scores(
    match: Callable[[str, Sequence[str]], float],
) -> Callable[[str, Sequence[str], Sequence[str]], dict[str, float]]:
    def scores(prediction: str, answers: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
        printable = re.sub(r"[\x00-\x1f]", "\n", prediction.strip()).strip()
        return {"string_match": match(printable, answers)}

    return scores
