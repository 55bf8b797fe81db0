"""Classes chosen by name and built with options: how selectors, evictions and benchmarks are registered and found."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")


class Registry(dict[str, type[T]]):
    """The classes of one kind by name, in the order in which they were registered.

    Parameters
    ----------
    kind
        What messages call a class of this registry, such as ``"selector"``.
    classes
        What is registered from the start.
    aliases
        Other names, each with the registered name that it stands for.
    """

    def __init__(
        self, kind: str, classes: Mapping[str, type[T]] | None = None, aliases: Mapping[str, str] | None = None
    ):
        super().__init__(classes or {})
        self.kind = kind
        self.aliases = dict(aliases or {})

    def find(self, name: str) -> type[T]:
        """The class of this name or alias.

        Raises
        ------
        ValueError
            There is no such name; the message lists those that exist.
        """
        found = self.get(self.aliases.get(name, name))
        if found is None:
            raise ValueError(f"unknown {self.kind} {name!r}: choose one of {self._names()}")
        return found

    def build(self, name: str, options: Mapping[str, object]) -> T:
        """An instance of the dataclass of this name or alias, made with these options.

        Raises
        ------
        ValueError
            An unknown name, an option that the class does not have (the message lists those that it has), or a value
            that it refuses.
        """
        kind = self.find(name)
        allowed = option_names(kind)
        if unknown := sorted(set(options) - set(allowed)):
            takes = ", ".join(allowed) or "none"
            raise ValueError(f"{self.kind} {name!r} has no option {', '.join(unknown)}: it takes {takes}")
        return kind(**options)

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """A class decorator that makes a class known by `name`.

        Defining a class again under its own name replaces it, as re-running a notebook cell does.

        Raises
        ------
        ValueError
            Another class has this name already.
        """

        def add(kind: type[T]) -> type[T]:
            known = self.get(name)
            redefined = known is not None and _full_name(known) == _full_name(kind)
            if name in self.aliases or (known is not None and not redefined):
                raise ValueError(f"the {self.kind} name {name!r} is taken: choose another")
            self[name] = kind
            return kind

        return add

    def _names(self) -> str:
        names = ", ".join(self)
        if not self.aliases:
            return names
        aliases = ", ".join(f"{alias} = {name}" for alias, name in self.aliases.items())
        return f"{names} (or an alias: {aliases})"


def _full_name(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__


def option_names(kind: type) -> list[str]:
    """The options that a dataclass takes."""
    return [field.name for field in fields(kind) if field.init]


def choose(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    """``known[name]``, or an error that lists the names that exist."""
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}: choose one of {', '.join(known)}")
    return known[name]
