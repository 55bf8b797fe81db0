"""Results on disk: the one place that knows where things lie under outputs/, and how they are written and read.

    outputs/index.html                              all reports
    outputs/reference/                              recorded reports and latencies, committed
    outputs/<profile>/report.html, report/          the report, its figures (PNG, PDF) and tables (CSV, LaTeX)
    outputs/<profile>/store/                        K/V segments, shared by all benchmarks of the profile
    outputs/<profile>/<model>/
        chunking.json precompute.json               what the chunking and precompute notebooks found
        tokens.json                                 selected tokens and attention in one prompt
        notebooks/                                  the executed notebooks
    outputs/<profile>/<model>/<benchmark>/
        <task>.prompts.json                         the task's prompts, with what their evaluation needs
        <task>.parquet <task>.json                  a row per (prompt, method, ratio); summary with provenance
        <task>.<parameters>.partial.jsonl           rows so far, while an evaluation runs or after it was interrupted

A shard's files have its name before the ending: ``precompute.0-of-2.json``, ``<task>.0-of-2.json`` when it is done.
"""

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import xxhash


def write_json(path: Path, value: object, indent: int | None = 1) -> None:
    """Write `value`; the file appears whole or not at all."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a page or a table; the file appears whole or not at all."""
    _replace(path, lambda partial: partial.write_text(text))


def write_rows(path: Path, rows: pd.DataFrame) -> None:
    """Write a results table as parquet; the file appears whole or not at all."""
    _replace(path, lambda partial: rows.to_parquet(partial, index=False))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(path.name + ".partial")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # a link there would lead elsewhere
        write(partial)
        os.replace(partial, path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise OSError(
            f"cannot write {path}: {reason}. What was computed before is kept: make room or choose a root that can be "
            "written to, and run the same again"
        ) from error


def read_json(path: Path, made_by: str) -> dict:
    """Read what the notebook `made_by` wrote.

    Raises
    ------
    FileNotFoundError
        With the name of the notebook that makes the file.
    """
    return json.loads(_there(path, made_by).read_text())


def read_rows(path: Path, made_by: str) -> pd.DataFrame:
    """Read a results table; errors as in `read_json`."""
    return pd.read_parquet(_there(path, made_by))


def _there(path: Path, made_by: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there yet: run the notebook {made_by} first, or `make reproduce`")
    return path


def read_partial(path: Path) -> list[dict]:
    """The rows of an interrupted evaluation; damaged ones are dropped from its file, and computed again."""
    if not path.exists():
        return []
    rows = rows_so_far(path)
    whole = "".join(map(_line, rows))
    if path.read_bytes() != whole.encode():
        _replace(path, lambda partial: partial.write_text(whole))
    return rows


def rows_so_far(path: Path) -> list[dict]:
    """The whole and undamaged lines of a file that another process may be writing; the file is left as it is."""
    rows = []
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, KeyError, TypeError):
            found = json.loads(line)
            if found["checksum"] == _checksum(found["row"]):
                rows.append(found["row"])
    return rows


def append_rows(path: Path, rows: Iterable[dict]) -> None:
    """Add rows to the file of an evaluation in progress, in one write; a link is not followed."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(path, flags, 0o666), "a") as file:
            file.write("".join(map(_line, rows)))


def _line(row: dict) -> str:
    return json.dumps({"row": row, "checksum": _checksum(row)}) + "\n"


def _checksum(row: dict) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(row).encode())
