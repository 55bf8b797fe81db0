"""Optional packages: each is imported where it is needed, and where it is missing one message says what to install."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Imports of packages that come with one of ragkv's extras.

    Parameters
    ----------
    name
        The extra in pyproject.toml, such as ``"rag"``.
    purpose
        What needs these packages, as the subject of the message: ``"BM25"``.

    Raises
    ------
    ImportError
        A package is missing or cannot be imported; the message names the extra.

    Examples
    --------
    >>> with extra("rag", "BM25"):
    ...     import bm25s
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{purpose} needs an optional package: pip install 'ragkv[{name}]' ({error})") from error
