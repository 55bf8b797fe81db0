"""Classes chosen by name and built with options: how selectors, evictions and benchmarks are registered and found."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, TypeVar, get_args, get_type_hints

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
        hints = get_type_hints(kind)
        for option, value in options.items():
            if wanted := _other_type(hints[option], value):
                raise ValueError(f"{self.kind} {name!r}: the option {option} is {_short(value)}, expected {wanted}")
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


# What numbers of each kind may be: bool is a kind of int in Python, and would count as 0 or 1.
_SIMPLE: dict[type, tuple[type, ...]] = {bool: (bool,), int: (Integral,), float: (Real,), str: (str,)}


def _other_type(hint: Any, value: object) -> str | None:
    """What an option takes, if the value is something else; None if it fits, or if the hint is not of simple types."""
    kinds = [kind for kind in get_args(hint) or [hint] if kind is not type(None)]
    optional = len(kinds) < len(get_args(hint))
    if not all(kind in _SIMPLE for kind in kinds) or (value is None and optional):
        return None
    fits = [
        kind for kind in kinds if isinstance(value, _SIMPLE[kind]) and (kind is bool or not isinstance(value, bool))
    ]
    return None if fits else " or ".join([kind.__name__ for kind in kinds] + ["nothing"] * optional)


def _short(value: object) -> str:
    """A value as it is written, if that is not long."""
    return f"a {type(value).__name__}" if isinstance(value, (list, dict, tuple, set)) else repr(value)[:80]


def choose(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    """``known[name]``, or an error that lists the names that exist."""
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}: choose one of {', '.join(known)}")
    return known[name]
