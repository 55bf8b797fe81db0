"""RULER's needles in a haystack: facts about keys, hidden among sentences or among other facts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Literal
from uuid import UUID

from ragkv.benchmarks.ruler_tasks import Drawn, Endless, Layout, distinct, noise

ADJECTIVES = (
    "ancient brave bright calm careful clever curious eager early elegant famous faithful gentle golden grand happy "
    "hidden honest humble jolly kind lively lonely lucky mellow mighty modest nimble noble patient playful polite "
    "proud quick quiet rapid silent simple steady tender"
).split()
COLOURS = (
    "amber azure black blue bronze brown coral crimson green grey ivory jade lilac olive orange pink red tan white"
).split()
NOUNS = (
    "anchor basket beacon bridge candle castle cellar chapel compass cottage desert falcon feather forest fountain "
    "garden glacier hammer harbour island kettle lantern library meadow mirror mountain orchard otter parrot pebble "
    "pillow planet puzzle river saddle satchel sparrow temple valley violin willow window"
).split()


def keys(rng: Random) -> Iterator[str]:
    """Distinct three-word names."""
    return distinct(lambda: f"{rng.choice(ADJECTIVES)} {rng.choice(COLOURS)} {rng.choice(NOUNS)}")


def _uuid(rng: Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))


def _spread(rng: Random, needles: list[str]) -> Callable[[list[str]], tuple[list[str], dict[int, int]]]:
    """Draw a relative position for each needle; returns a function that inserts the needles into any list of sentences.

    It returns the sentences with the needles, and the index of each needle among them.
    """
    positions = [rng.random() for _ in needles]
    order = sorted(range(len(needles)), key=positions.__getitem__)

    def insert(sentences: list[str]) -> tuple[list[str], dict[int, int]]:
        parts = list(sentences)
        index_of: dict[int, int] = {}
        for inserted, needle in enumerate(order):
            index = int(positions[needle] * (len(sentences) + 1)) + inserted
            parts.insert(index, needles[needle])
            index_of[needle] = index
        return parts, index_of

    return insert


@dataclass(frozen=True)
class Retrieval:
    """A needle task.

    Attributes
    ----------
    haystack
        What surrounds the needles: a few repeated sentences, prose, or other needles.
    key, value
        What a needle's key and value look like.
    keys, values
        Number of keys, and of values for each.
    asked
        Number of keys that the question asks for.
    """

    haystack: Literal["noise", "essay", "needles"]
    key: Literal["words", "uuid"] = "words"
    value: Literal["number", "uuid"] = "number"
    keys: int = 1
    values: int = 1
    asked: int = 1

    def draw(self, rng: Random, sentences: Iterator[str]) -> Drawn:
        kind = "number" if self.value == "number" else "uuid"
        names = distinct(lambda: _uuid(rng)) if self.key == "uuid" else keys(rng)
        numbers = distinct(lambda: str(rng.randrange(10**6, 10**7)) if self.value == "number" else _uuid(rng))

        def fact() -> str:
            return f"The magic {kind} of {next(names)} is {next(numbers)}."

        known = [(name, list(islice(numbers, self.values))) for name in islice(names, self.keys)]
        needles = [f"The magic {kind} of {name} is {value}." for name, values in known for value in values]
        wanted = needles[: self.asked * self.values]
        insert = _spread(rng, needles)
        if self.haystack == "needles":
            around = Endless(iter(fact, None))
        else:
            around = Endless(sentences if self.haystack == "essay" else noise())
        subjects = _listed([name for name, _ in known[: self.asked]])
        several = self.asked * self.values > 1
        asked = f"s of {subjects} are" if several else f" of {subjects} is"
        question = f"are all the magic {kind}s" if several else f"is the magic {kind}"

        def layout(size: int) -> Layout:
            parts, index_of = insert(around.first(size))
            return Layout(
                before=f"Some magic {kind}s are hidden in the text below. Remember them: you will be asked for them.\n",
                parts=parts,
                hits={index_of[i] for i in range(len(wanted))},
                after=f"\nWhat {question} of {subjects}?",
                answer_prefix=f" The magic {kind}{asked}",
                answers=tuple(value for _, values in known[: self.asked] for value in values),
            )

        return Drawn(layout, smallest=0)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


RETRIEVAL = {
    "niah_single_1": Retrieval("noise"),
    "niah_single_2": Retrieval("essay"),
    "niah_single_3": Retrieval("essay", value="uuid"),
    "niah_multikey_1": Retrieval("essay", keys=4),
    "niah_multikey_2": Retrieval("needles"),
    "niah_multikey_3": Retrieval("needles", key="uuid", value="uuid"),
    "niah_multivalue": Retrieval("essay", values=4),
    "niah_multiquery": Retrieval("essay", keys=4, asked=4),
}
