"""Shards: the part of a run that one process takes, so that several processes, on one machine or many, share it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Thing = TypeVar("Thing")


def part_of(path: Path, name: str) -> Path:
    """`path` with the name of a shard before its ending."""
    return path.with_name(f"{path.stem}.{name}{path.suffix}")


@dataclass(frozen=True)
class Shard:
    """Part `index` of `of`; the first of one is everything."""

    index: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str | None) -> "Shard":
        """``"0/2"`` is the first of two, None everything.

        Raises
        ------
        ValueError
            Something else, or there is no such part.
        """
        if text is None:
            return cls()
        numbers = re.fullmatch(r"(\d+)/(\d+)", text)
        if numbers is None or int(numbers[1]) >= int(numbers[2]):
            raise ValueError(f"shard {text!r}: give a number and how many there are, from '0/2' to '1/2' for two")
        return cls(int(numbers[1]), int(numbers[2]))

    @classmethod
    def all(cls, count: int) -> list["Shard"]:
        """The `count` parts of a run."""
        return [cls(index, count) for index in range(count)]

    @property
    def whole(self) -> bool:
        return self.of == 1

    @property
    def name(self) -> str:
        """As it stands in the names of files: ``0-of-2``."""
        return f"{self.index}-of-{self.of}"

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    def path(self, path: Path) -> Path:
        """Where this part writes what the whole writes to `path`."""
        return path if self.whole else part_of(path, self.name)

    def take(self, things: Sequence[Thing]) -> list[Thing]:
        """This part of `things`: every `of`-th one, so that long and short ones are dealt out alike."""
        return list(things[self.index :: self.of])

    def owns(self, key: str) -> bool:
        """Whether what has this key, a hexadecimal hash, is in this part, wherever it stands."""
        return int(key, 16) % self.of == self.index
