"""The code that foreign modules run, described by its bytecode, which is there even where its source is not."""

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

_PLAIN = (bool, int, float, str, bytes, type(None))
_KNOWN_BY_NAME = ("torch", "builtins")  # libraries whose code is not described
_NO_CODE = ("__module__", "__doc__", "__qualname__", "__firstlineno__", "__annotations__")


def describe(item: type | Callable) -> str:
    """The name of a class or function, and a hash of its code."""
    parts: list[Any] = []
    if isinstance(item, type):
        for kind in _described(item):
            for key, value in sorted(vars(kind).items()):
                if key not in _NO_CODE:
                    parts += [kind.__qualname__, key, *_code(value)]
    else:
        parts += _code(item)
    return f"{item.__module__}.{item.__qualname__} {hashlib.sha256(repr(parts).encode()).hexdigest()}"


def members(kind: type) -> list[tuple[str, Any]]:
    """What a class and its bases have as members; if the class is changed, this changes."""
    return [
        (key, value if isinstance(value, _PLAIN) else id(value))
        for base in _described(kind)
        for key, value in vars(base).items()
    ]


@lru_cache(maxsize=1000)
def _described(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in _KNOWN_BY_NAME]


def _code(value: Any) -> Iterator[Any]:
    if isinstance(value, _PLAIN):
        yield repr(value)
    elif isinstance(value, property):
        yield from _code(value.fget)
        yield from _code(value.fset)
    elif isinstance(value, staticmethod | classmethod):
        yield from _code(value.__func__)
    elif isinstance(value, FunctionType):
        yield from _bytecode(value.__code__)
        yield [repr(default) for default in value.__defaults__ or () if isinstance(default, _PLAIN)]
        yield from _code(getattr(value, "__wrapped__", None))


def _bytecode(code: CodeType) -> Iterator[Any]:
    yield code.co_code
    yield code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _bytecode(constant)
        else:
            yield sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)
