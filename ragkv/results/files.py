"""Results on disk: JSON, pages and tables. Files appear whole or not at all, and results carry a checksum.

A result ``vt_1.parquet`` has a file ``vt_1.parquet.checksum`` beside it. It lists the checksum of every version of the
result that was ever written, each added before that version is put in place. So processes that write the same result at
the same time, or are killed while they write it, always leave a result that is listed.
"""

import errno
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import pandas as pd
import xxhash

CHECKSUM = ".checksum"  # added to a result's name
LEFTOVER = 24 * 3600  # seconds after which another process's temporary file is taken for one that was left behind


class DamagedError(ValueError):
    """A result's file does not match its checksum, or cannot be read."""


class IrregularError(OSError):
    """There is a folder, a pipe or a device in place of a file."""


def write_json(
    path: Path, value: object, indent: int | None = 1, *, keep_unchanged: bool = False, checked: bool = False
) -> None:
    """Write `value` as JSON.

    Parameters
    ----------
    keep_unchanged
        Leave a file that already has this content as it is, including its modification time, so that nothing is made
        again because of it.
    checked
        Also write the file's checksum: the file is a result.
    """
    content = (json.dumps(value, indent=indent) + "\n").encode()
    if not (keep_unchanged and _holds(path, content, checked)):
        _replace(path, content, checked)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a figure."""
    _replace(path, content, checked=False)


def write_text(path: Path, text: str) -> None:
    """Write a page or a table."""
    _replace(path, text.encode(), checked=False)


def write_rows(path: Path, rows: pd.DataFrame) -> None:
    """Write a results table as parquet, with its checksum. The table's ``attrs`` are kept."""
    buffer = BytesIO()
    rows.to_parquet(buffer, index=False)
    _replace(path, buffer.getvalue(), checked=True)


def read_json(path: Path, made_by: str) -> dict:
    """Read a JSON file.

    Parameters
    ----------
    made_by
        The notebook that writes the file, for the error message if it does not exist.

    Raises
    ------
    FileNotFoundError
        The file does not exist yet; the message names the notebook to run.
    DamagedError
        The file has a checksum and does not match it, or it is not JSON.
    """
    content = _content(path, made_by)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is not JSON ({error})") from None


def read_rows(path: Path, made_by: str) -> pd.DataFrame:
    """Read a results table; errors as in `read_json`."""
    content = _content(path, made_by)
    try:
        return pd.read_parquet(BytesIO(content))
    except Exception as error:  # the reader raises many kinds of errors for damaged files
        raise _damaged(path, f"it is not a table ({type(error).__name__})") from None


def read_attrs(path: Path) -> dict:
    """The ``attrs`` of a results table, without reading its rows; errors as in `read_json`."""
    from pyarrow import ArrowException, parquet  # slow to import

    try:
        return json.loads(parquet.read_schema(path).metadata.get(b"PANDAS_ATTRS", b"{}"))
    except (ArrowException, AttributeError, OSError, ValueError) as error:
        raise _damaged(path, f"it is not a table ({type(error).__name__})") from None


def damage(path: Path) -> str | None:
    """What is wrong with a result's file; None if it matches its checksum.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    """
    try:
        known = _checksums(path)
        content = read_regular(path)
    except IrregularError as error:
        return str(error)
    return _mismatch(path, content, known) if known else f"it has no checksum ({path.name}{CHECKSUM})"


def _holds(path: Path, content: bytes, checked: bool) -> bool:
    return path.is_file() and read_regular(path) == content and (not checked or damage(path) is None)


def _content(path: Path, made_by: str) -> bytes:
    """The bytes of an existing file, checked if it has a checksum (recorded results have none)."""
    try:
        content = read_regular(path)
        known = _checksums(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is not there yet: run the notebook {made_by} first, or `make reproduce`"
        ) from None
    except IrregularError as error:
        raise _damaged(path, str(error)) from None
    if known and (problem := _mismatch(path, content, known)):
        raise _damaged(path, problem)
    return content


def read_regular(path: Path) -> bytes:
    """The bytes of a file; a pipe or a device, which could be read for ever, is refused, and so is a folder."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IrregularError(f"{path.name} is not a regular file: remove it")
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def _mismatch(path: Path, content: bytes, known: set[str]) -> str | None:
    if _checksum(content) in known:
        return None
    return f"it does not match its checksum ({path.name}{CHECKSUM})"


def _damaged(path: Path, problem: str) -> DamagedError:
    return DamagedError(f"{path} is damaged: {problem}. Run the same again, and it is computed again")


def _checksum(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)


def _checksums(path: Path) -> set[str]:
    """The checksums of all versions of a result; none if it has no file of checksums."""
    try:
        return set(read_regular(_beside(path)).decode(errors="replace").split())
    except FileNotFoundError:
        return set()


def _beside(path: Path) -> Path:
    return path.with_name(path.name + CHECKSUM)


def _replace(path: Path, content: bytes, checked: bool) -> None:
    """Write a temporary file of this process beside `path`, then put it in its place."""
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:12]}.partial")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        try:
            append(temporary, content, os.O_EXCL)
            if checked and _checksum(content) not in _checksums(path):
                # On a line of its own, also behind one that a full disk cut short.
                append(_beside(path), f"\n{_checksum(content)}\n".encode())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def append(path: Path, content: bytes, flags: int = 0) -> None:
    """Add bytes to the end of a file, which is made if need be; a symbolic link is not followed."""
    flags |= os.O_WRONLY | os.O_APPEND | os.O_CREAT
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe that nobody reads is an error
    with os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0) as file:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of `path` that killed processes left behind."""
    for file in path.parent.glob(f"{escape(path.name)}.*.partial"):
        with suppress(FileNotFoundError):  # another process may just have put it in its place
            if time.time() - file.lstat().st_mtime > LEFTOVER:
                file.unlink()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the errors of writing `path` into one that says what to do."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise OSError(
            f"cannot write {path}: {reason}. What was computed before is kept: make room or choose a root that can be "
            "written to, and run the same again"
        ) from error
