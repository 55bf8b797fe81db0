"""The rows so far of an evaluation that is running or was interrupted: a file of JSON lines for each process.

Every line carries its own checksum, so that lines that were cut off or damaged are noticed and computed again. A
process writes only to its own file, and reads those of all others.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import xxhash

from ragkv.results.files import IrregularError, append, explained, read_regular


def append_rows(path: Path, rows: Iterable[dict]) -> None:
    """Add rows to this process's file; a symbolic link is not followed."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        append(path, "".join(map(_line, rows)).encode())


def rows_so_far(path: Path) -> list[dict]:
    """The complete and undamaged lines of a file that another process may be writing; the file is only read."""
    rows: list[dict] = []
    try:
        content = read_regular(path)
    except IrregularError:
        return rows
    for line in content.splitlines():
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            entry = json.loads(line)
            if entry["checksum"] == _checksum(entry["row"]):
                rows.append(entry["row"])
    return rows


def _line(row: dict) -> str:
    return json.dumps({"row": row, "checksum": _checksum(row)}) + "\n"


def _checksum(row: dict) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(row).encode())
