"""Shards: parts of a run, each for one process, so that processes on one machine or many share the work."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def part_of(path: Path, name: str) -> Path:
    """`path` with the name of a shard before its suffix."""
    return path.with_name(f"{path.stem}.{name}{path.suffix}")


@dataclass(frozen=True)
class Shard:
    """Part `index`, from 0, of `of` parts. The only part of one is everything."""

    index: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str | None) -> "Shard":
        """``"0/2"`` is the first of two, None everything.

        Raises
        ------
        ValueError
            The text is anything else, or there is no such part.
        """
        if text is None:
            return cls()
        numbers = re.fullmatch(r"(\d+)/(\d+)", text)
        if numbers is None or int(numbers[1]) >= int(numbers[2]):
            raise ValueError(f"shard {text!r}: give its number and the number of shards, from '0/2' to '1/2' for two")
        return cls(int(numbers[1]), int(numbers[2]))

    @classmethod
    def all(cls, count: int) -> list["Shard"]:
        """All parts of a run that is divided into `count`."""
        return [cls(index, count) for index in range(count)]

    @property
    def whole(self) -> bool:
        """Whether this part is everything."""
        return self.of == 1

    @property
    def name(self) -> str:
        """The shard in the names of files: ``0-of-2``."""
        return f"{self.index}-of-{self.of}"

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    def path(self, path: Path) -> Path:
        """The file of this part, where `path` is that of the whole."""
        return path if self.whole else part_of(path, self.name)

    def take(self, items: Sequence[T]) -> list[T]:
        """This part of a sequence: every `of`-th item, so that each part gets long and short ones alike."""
        return list(items[self.index :: self.of])

    def owns(self, key: str) -> bool:
        """Whether this part is responsible for a key, a hexadecimal hash. The order of keys does not matter."""
        return int(key, 16) % self.of == self.index
