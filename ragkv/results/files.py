"""Results on disk: JSON, pages, tables, and the rows of an evaluation in progress. Files appear whole or not at all."""

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import xxhash


def write_json(path: Path, value: object, indent: int | None = 1, *, keep_unchanged: bool = False) -> None:
    """Write `value` as JSON.

    Parameters
    ----------
    keep_unchanged
        Leave a file that says the same already as it is, with its time, so that nothing is made again because of it.
    """
    text = json.dumps(value, indent=indent) + "\n"
    if keep_unchanged and path.is_file() and path.read_bytes() == text.encode():
        return
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a page or a table."""
    _replace(path, lambda partial: partial.write_text(text))


def write_rows(path: Path, rows: pd.DataFrame) -> None:
    """Write a results table as parquet."""
    _replace(path, lambda partial: rows.to_parquet(partial, index=False))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file beside `path`, then put it in its place."""
    partial = path.with_name(path.name + ".partial")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # never write through a symbolic link
        write(partial)
        os.replace(partial, path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise OSError(
            f"cannot write {path}: {reason}. What was computed before is kept: make room or choose a root that can be "
            "written to, and run the same again"
        ) from error


def read_json(path: Path, made_by: str) -> dict:
    """Read a JSON file.

    Parameters
    ----------
    made_by
        The notebook that writes the file, to be named if the file is missing.

    Raises
    ------
    FileNotFoundError
        There is no such file yet; the message names the notebook to run.
    """
    return json.loads(_existing(path, made_by).read_text())


def read_rows(path: Path, made_by: str) -> pd.DataFrame:
    """Read a results table; errors as in `read_json`."""
    return pd.read_parquet(_existing(path, made_by))


def _existing(path: Path, made_by: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there yet: run the notebook {made_by} first, or `make reproduce`")
    return path


def read_partial(path: Path) -> list[dict]:
    """The rows of an interrupted evaluation; damaged lines are removed from the file and will be computed again."""
    if not path.exists():
        return []
    rows = rows_so_far(path)
    undamaged = "".join(map(_line, rows))
    if path.read_bytes() != undamaged.encode():
        write_text(path, undamaged)
    return rows


def rows_so_far(path: Path) -> list[dict]:
    """The complete and undamaged lines of a file that another process may be writing; the file is only read."""
    rows = []
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            if entry["checksum"] == _checksum(entry["row"]):
                rows.append(entry["row"])
    return rows


def append_rows(path: Path, rows: Iterable[dict]) -> None:
    """Add rows to the file of an evaluation in progress, in one write; a symbolic link is not followed."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(path, flags, 0o666), "a") as file:
            file.write("".join(map(_line, rows)))


def _line(row: dict) -> str:
    return json.dumps({"row": row, "checksum": _checksum(row)}) + "\n"


def _checksum(row: dict) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(row).encode())
