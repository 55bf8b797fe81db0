"""Manifests: which segments a profile's tasks need, and when these were last used."""

import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from ragkv.store.errors import StoreError
from ragkv.store.files import Folder
from ragkv.store.segment_file import KEY

_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Manifest:
    """For each task, the keys of the segments it needs, and how often its prompts refer to each."""

    tasks: dict[str, dict[str, int]]

    @classmethod
    def of(cls, tasks: Mapping[str, Iterable[str]]) -> "Manifest":
        """From the keys that each task's prompts refer to, repeated as often as they do."""
        return cls({task: dict(sorted(Counter(keys).items())) for task, keys in tasks.items()})

    @property
    def references(self) -> Counter[str]:
        """How often each segment is referred to, over all tasks."""
        return sum((Counter(keys) for keys in self.tasks.values()), Counter())


class Manifests:
    """The manifests of a store, by name."""

    def __init__(self, folder: Folder):
        self._folder = folder

    def names(self) -> list[str]:
        """The names of all manifests, sorted."""
        files = (entry.name.removeprefix("manifests/") for entry in self._folder.list("manifests"))
        return [file.removesuffix(".json") for file in files if file.endswith(".json") and _NAME.fullmatch(file)]

    def write(self, name: str, manifest: Manifest) -> None:
        """Write a manifest, and mark its segments as used now.

        Raises
        ------
        StoreError
            The store cannot be written to.
        ValueError
            The name is not a plain file name.
        """
        self._folder.write_json(_file("manifests", name), {"tasks": manifest.tasks})
        self.mark_used(name)

    def read(self, name: str) -> Manifest:
        """Read a manifest.

        Raises
        ------
        FileNotFoundError
            There is none of that name.
        StoreError
            It is damaged.
        """
        manifest = self._folder.read_json(_file("manifests", name), _parse)
        for key in manifest.references:
            if not KEY.fullmatch(key):
                raise StoreError(f"the manifest {name} of {self._folder.url!r} names {key!r}, which is not a key")
        return manifest

    def mark_used(self, name: str) -> None:
        """Note that a job that uses the manifest's segments has begun."""
        self._folder.write_json(_file("uses", name), {"at": time.time()})

    def last_used(self) -> dict[str, float]:
        """When each segment that some manifest names was last used (seconds since the epoch)."""
        used: dict[str, float] = {}
        for name in self.names():
            with suppress(FileNotFoundError):
                at = self._folder.read_json(_file("uses", name), _parse_time)
                used |= {key: max(at, used.get(key, 0.0)) for key in self.read(name).references}
        return used


def _parse(value: dict) -> Manifest:
    tasks = value["tasks"].items()
    return Manifest({task: {key: int(count) for key, count in keys.items()} for task, keys in tasks})


def _parse_time(value: dict) -> float:
    seconds = float(value["at"])
    if not math.isfinite(seconds):
        raise ValueError(f"{seconds} is no time")
    return seconds


def _file(kind: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"a manifest cannot be named {name!r}: use letters, digits, '.', '-' and '_'")
    return f"{kind}/{name}.json"
