"""RULER's tasks, generated for a token budget (arXiv 2404.06654): the benchmark's settings in this project's words.

An example is drawn once from its seed and can then be laid out at any size (in sentences, needles, words or documents),
so that the largest size that fits the budget can be searched for.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from random import Random

NOISE = (
    "The road is long.",
    "The lake is deep.",
    "The night is cold.",
    "We walk on.",
    "There it ends, and there it begins.",
)


@dataclass(frozen=True)
class Layout:
    """A prompt of one size.

    Attributes
    ----------
    before, after, answer_prefix
        The texts around the document.
    parts
        The document's parts, joined by `gap`.
    hits
        Indices of the parts that the answer follows from.
    answers
        The right answers.
    """

    before: str
    parts: list[str]
    hits: set[int]
    after: str
    answer_prefix: str
    answers: tuple[str, ...]
    gap: str = " "

    @property
    def document(self) -> str:
        return self.gap.join(self.parts)

    @property
    def evidence(self) -> tuple[tuple[int, int], ...]:
        """The character spans of the hits in the document."""
        spans = []
        start = 0
        for index, part in enumerate(self.parts):
            if index in self.hits:
                spans.append((start, start + len(part)))
            start += len(part) + len(self.gap)
        return tuple(spans)


@dataclass
class Drawn:
    """An example of any size: `layout(size)` works for every size from `smallest` on."""

    layout: Callable[[int], Layout]
    smallest: int


@dataclass
class Endless:
    """The items of an endless iterator, kept so that they can be taken again."""

    source: Iterator[str]
    taken: list[str] = field(default_factory=list)

    def first(self, count: int) -> list[str]:
        self.taken += islice(self.source, max(0, count - len(self.taken)))
        return self.taken[:count]


def distinct(draw: Callable[[], str], patience: int = 10_000) -> Iterator[str]:
    """Distinct results of repeated calls of `draw`.

    Raises
    ------
    ValueError
        `patience` draws in a row gave nothing new.
    """
    seen: set[str] = set()
    misses = 0
    while misses < patience:
        if (item := draw()) in seen:
            misses += 1
        else:
            misses = 0
            seen.add(item)
            yield item
    raise ValueError(f"all {len(seen)} names of a kind are used up: ask for a shorter length")


def made_up_word(rng: Random) -> str:
    """A pronounceable word of six letters."""
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3))


def noise() -> Iterator[str]:
    while True:
        yield from NOISE


def draw_tracking(rng: Random, sentences: Iterator[str], hops: int = 4) -> Drawn:
    """Variable tracking: a chain of assignments; the question asks for all variables that hold its value."""
    letters = distinct(lambda: "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(5)))
    names = list(islice(letters, hops + 1))
    value = str(rng.randrange(10_000, 100_000))
    chain = [f"VAR {names[0]} = {value}."] + [f"VAR {new} = VAR {old}." for old, new in pairwise(names)]
    positions = sorted(rng.random() for _ in chain)
    around = Endless(noise())

    def layout(size: int) -> Layout:
        parts = around.first(size)
        hits = set()
        for inserted, (position, statement) in enumerate(zip(positions, chain, strict=True)):
            index = int(position * (size + 1)) + inserted
            parts.insert(index, statement)
            hits.add(index)
        return Layout(
            before="Variables are assigned in the text below, some of them from others. Keep track of their values.\n",
            parts=parts,
            hits=hits,
            after=f"\nQuestion: Which variables hold the value {value}? Name all of them.",
            answer_prefix=f" Answer: The {len(names)} variables that hold the value {value} are:",
            answers=tuple(names),
        )

    return Drawn(layout, smallest=0)


def draw_common_words(
    rng: Random, sentences: Iterator[str], common: int = 10, often: int = 30, seldom: int = 3
) -> Drawn:
    """Common words: a numbered list with ten words that occur 30 times each; the others occur three times."""
    words = distinct(lambda: made_up_word(rng))
    frequent = list(islice(words, common))
    others = Endless(words)
    seed = rng.random()

    def layout(size: int) -> Layout:
        listed = frequent * often + others.first(size) * seldom
        Random(seed).shuffle(listed)
        return Layout(
            before="Below is a numbered list of words. Some stand in it much more often than others.\n",
            parts=[f"{number}. {word}" for number, word in enumerate(listed, 1)],
            hits={i for i, word in enumerate(listed) if word in frequent},
            after=f"\nQuestion: Which {common} words stand in the list most often?",
            answer_prefix=f" Answer: The {common} words that stand in the list most often are:",
            answers=tuple(frequent),
        )

    return Drawn(layout, smallest=1)


def draw_frequent_words(rng: Random, sentences: Iterator[str], alpha: float = 2.0) -> Drawn:
    """Frequent words: made-up words with frequencies ``rank ** -alpha``; the question asks for the first three."""
    words = Endless(distinct(lambda: made_up_word(rng)))
    seed = rng.random()

    def layout(size: int) -> Layout:
        counts = [int(size / rank**alpha) for rank in range(1, int(size ** (1 / alpha)) + 1)]
        ranked = words.first(len(counts))
        text = [word for word, count in zip(ranked, counts, strict=True) for _ in range(count)]
        Random(seed).shuffle(text)
        return Layout(
            before="Below is a text of coded words. Count how often each of them stands in it.\n",
            parts=text,
            hits={i for i, word in enumerate(text) if word in ranked[:3]},
            after="\nQuestion: Which three coded words stand in the text most often? Do not explain.",
            answer_prefix=" Answer: The three coded words that stand in the text most often are:",
            answers=tuple(ranked[:3]),
        )

    # Frequencies at size 18 are 18, 4, 2, 1: from here on, the fourth word is always rarer than the third.
    return Drawn(layout, smallest=18)
