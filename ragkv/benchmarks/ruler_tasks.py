"""RULER's tasks, made for a token budget (arXiv 2404.06654): the benchmark's settings in this project's words.

A task is drawn once from its seed and can then be laid out at any size (sentences, needles, words or documents), so
that the largest size that fits can be looked for.
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
    """A prompt of one size: parts of the document, those that the answer follows from, and the texts around them."""

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
        """Where the hits stand in the document, in characters."""
        spans, start = [], 0
        for index, part in enumerate(self.parts):
            if index in self.hits:
                spans.append((start, start + len(part)))
            start += len(part) + len(self.gap)
        return tuple(spans)


@dataclass
class Drawn:
    """An example whose size is still open: `layout(size)` for any size from `smallest` on."""

    layout: Callable[[int], Layout]
    smallest: int


@dataclass
class Endless:
    """The first items of an endless iterator, as many as were asked for so far."""

    source: Iterator[str]
    taken: list[str] = field(default_factory=list)

    def first(self, count: int) -> list[str]:
        self.taken += islice(self.source, max(0, count - len(self.taken)))
        return self.taken[:count]


def distinct(draw: Callable[[], str], patience: int = 10_000) -> Iterator[str]:
    """What `draw` gives, nothing twice.

    Raises
    ------
    ValueError
        `patience` draws, one after the other, gave nothing new.
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
    """Six letters that can be pronounced."""
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3))


def noise() -> Iterator[str]:
    while True:
        yield from NOISE


def draw_tracking(rng: Random, sentences: Iterator[str], hops: int = 4) -> Drawn:
    """Variable tracking: one chain of assignments, all variables that hold its value are asked for."""
    letters = distinct(lambda: "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(5)))
    names, value = list(islice(letters, hops + 1)), str(rng.randrange(10_000, 100_000))
    chain = [f"VAR {names[0]} = {value}."] + [f"VAR {new} = VAR {old}." for old, new in pairwise(names)]
    places = sorted(rng.random() for _ in chain)
    around = Endless(noise())

    def layout(size: int) -> Layout:
        parts, hits = around.first(size), set()
        for index, (place, statement) in enumerate(zip(places, chain, strict=True)):
            at = int(place * (size + 1)) + index
            parts.insert(at, statement)
            hits.add(at)
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
    """Common words: a numbered list in which ten words stand 30 times each, the others three times."""
    words = distinct(lambda: made_up_word(rng))
    frequent, others, seed = list(islice(words, common)), Endless(words), rng.random()

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
    """Frequent words: coded words whose frequencies fall as ``rank ** -alpha``; the first three are asked for."""
    words, seed = Endless(distinct(lambda: made_up_word(rng))), rng.random()

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

    return Drawn(layout, smallest=18)  # 18, 4, 2, 1: from here on no fourth word is as frequent as the third
