"""Text on its way to a terminal: escapes, and warnings in one line."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def printable(text: str, keep: str = "") -> str:
    """The text with escapes for all characters that a terminal would act upon or cannot show, but for those to keep."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Show warnings on stderr as a line each, without the place in the code that they come from."""

    def show(message: Warning | str, *place: object, **more: object) -> None:
        print(f"warning: {printable(str(message))}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
