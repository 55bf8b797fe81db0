"""Things chosen by name, and dataclasses made with options, as selectors and evictions are."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")


def option_names(kind: type) -> list[str]:
    """The options that a dataclass takes."""
    return [field.name for field in fields(kind) if field.init]


def build(kind: type[T], name: str, options: Mapping[str, object]) -> T:
    """The dataclass with these options.

    Parameters
    ----------
    name
        What a message calls it.

    Raises
    ------
    ValueError
        An option that it does not have (the message lists those that it has), or a value that it refuses.
    """
    allowed = option_names(kind)
    if unknown := sorted(set(options) - set(allowed)):
        raise ValueError(f"{name} has no option {', '.join(unknown)}: it takes {', '.join(allowed) or 'none'}")
    return kind(**options)


def choose(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    """``known[name]``, or an error that lists what there is."""
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}: choose one of {', '.join(known)}")
    return known[name]
