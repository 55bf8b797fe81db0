"""A benchmark's records, read from JSON lines, JSON, parquet files or the Hugging Face hub."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ragkv.extras import extra
from ragkv.prompt.encoding import lone_surrogate
from ragkv.prompt.formats import decode_text

Record = tuple[str, dict]  # its place ("hotpotqa.jsonl line 17"), and its fields
HUB = "hf:"

# Characters of one record. No model reads as many at once, and encoding them takes more than a gigabyte of memory.
MAX_CHARACTERS = 8 * 2**20
_MAX_LINE = 6 * MAX_CHARACTERS  # bytes of a line: JSON may write a character as \uXXXX


def read_records(source: str, name: str, root: Path) -> list[Record]:
    """The records of one task.

    Parameters
    ----------
    source
        One of: a folder with ``<name>.jsonl``, ``<name>.json`` (a list), ``<name>.parquet``, or one parquet file of all
        tasks with a column ``dataset``; such a parquet file itself; ``hf:<hub id>``, optionally followed by
        ``@<revision>``, whose configurations are the tasks. Paths are relative to `root`.

    Raises
    ------
    FileNotFoundError
        There is no such folder or file; the message says what was looked for and what is there.
    ValueError
        A file is not valid JSON, or does not consist of records; the message says where.
    """
    if source.startswith(HUB):
        return _hub(source.removeprefix(HUB), name)
    folder = (root / source).resolve()
    if folder.suffix == ".parquet" and folder.is_file():
        return _parquet(folder, name)
    if folder.is_file():
        raise ValueError(
            f"{folder} is a file: give the folder with {name}.jsonl, {name}.json or {name}.parquet as source"
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: put the benchmark's files there ({name}.jsonl, ...)")
    for ending, read in ((".jsonl", _lines), (".json", _list), (".parquet", _parquet)):
        if (path := folder / (name + ending)).is_file():
            return list(read(path, name))
    tables = sorted(folder.glob("*.parquet"))
    if len(tables) == 1 and (records := _parquet(tables[0], name)):
        return records
    others = sorted({path.stem for path in folder.iterdir() if path.suffix in (".jsonl", ".json", ".parquet")})
    raise FileNotFoundError(
        f"{folder} has no {name}.jsonl, {name}.json or {name}.parquet: "
        f"there are {', '.join(others) or 'no such files at all'}"
    )


def require(record: Mapping, where: str, fields: Mapping[str, type | tuple[type, ...]]) -> None:
    """Check that a record has the given fields, with the given types.

    Raises
    ------
    ValueError
        A field is missing or of another type; the message gives the file, the line and the field.
    """
    for field, kinds in fields.items():
        if field not in record:
            raise ValueError(f"{where}: the field {field!r} is missing; there are {', '.join(record) or 'none'}")
        value = record[field]
        if not isinstance(value, kinds) or isinstance(value, bool):
            expected = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
            raise ValueError(f"{where}: the field {field!r} is {_kind(value)}, expected {expected}")


def require_texts(record: Mapping, where: str, field: str) -> tuple[str, ...]:
    """The items of a list of texts.

    Raises
    ------
    ValueError
        The field is no list, or one of its items is not a text but null, a number, a list or an object.
    """
    require(record, where, {field: list})
    for number, item in enumerate(record[field], 1):
        if not isinstance(item, str):
            raise ValueError(f"{where}: item {number} of the field {field!r} is {_kind(item)}, expected str")
    return tuple(record[field])


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises
    ------
    ValueError
        It is not UTF-8 text, or not valid JSON; the message says where.
    """
    return _json(decode_text(path.read_bytes(), str(path)), str(path))


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if "\n" in text.rstrip() else ""
        raise ValueError(f"{where}: this is no JSON ({error.msg} at {line}column {error.colno})") from None
    except RecursionError:
        raise ValueError(f"{where}: lists and objects are nested too deeply") from None
    except ValueError as error:  # such as a number of thousands of digits
        raise ValueError(f"{where}: this is no JSON ({error})") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, in which no name may occur twice: the last value would silently win."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} occurs twice in an object")
    return content


def _lines(path: Path, name: str) -> Iterator[Record]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE + 1):
            number += 1
            where = f"{path} line {number}"
            if len(line) > _MAX_LINE:
                raise ValueError(_too_long(where))
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise ValueError(f"{where}: this is not UTF-8 text. Save the file as UTF-8") from None
            if text.strip():
                yield _record(where, _json(text.rstrip("\r\n"), where))


def _list(path: Path, name: str) -> Iterator[Record]:
    records = read_json(path)
    if not isinstance(records, list):
        raise ValueError(f"{path}: it must hold a list of records, it holds {_kind(records)}")
    for number, record in enumerate(records, 1):
        yield _record(f"{path} record {number}", record)


def _record(where: str, record: object) -> Record:
    """The record, if its texts can be encoded and are not too long."""
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a record must be an object with fields, this is {_kind(record)}")
    characters = 0
    for field, text in _texts(record):
        characters += len(text)
        if lone_surrogate(text) is not None:
            raise ValueError(
                f"{where}: the field {field!r} has half of a surrogate pair, such as \\ud83d without \\ude00"
            )
    if characters > MAX_CHARACTERS:
        raise ValueError(_too_long(where))
    return where, record


def _texts(record: dict) -> Iterator[tuple[str, str]]:
    """All texts in a record, at any depth, and the field that each belongs to."""
    pending = list(record.items())
    while pending:
        field, value = pending.pop()
        if isinstance(value, str):
            yield field, value
        elif isinstance(value, dict):
            pending += [(field, item) for item in value.values()]
        elif isinstance(value, list):
            pending += [(field, item) for item in value]


def _too_long(where: str) -> str:
    return f"{where}: the record has more than {MAX_CHARACTERS:,} characters: split its document or leave it out"


def _parquet(path: Path, name: str) -> list[Record]:
    with extra("evaluation", "reading parquet files"):
        import pyarrow  # slow to import
        from pyarrow import parquet

    try:
        table = parquet.read_table(path, partitioning=None)
        numbers: Iterable[int] = range(1, len(table) + 1)
        if path.stem != name:
            if "dataset" not in table.column_names:
                raise ValueError(f"{path} has no column 'dataset' that says which records are of {name}")
            numbers = [number for number, task in enumerate(table["dataset"].to_pylist(), 1) if task == name]
            table = table.take([number - 1 for number in numbers])
        rows = table.to_pylist()  # every value as it was stored
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path}: this is no parquet file ({_first_line(error)})") from None
    return [_record(f"{path} record {number}", row) for number, row in zip(numbers, rows, strict=True)]


def _hub(source: str, name: str) -> list[Record]:
    with extra("hub", f"the source {HUB}{source}"):
        from datasets import load_dataset  # slow to import
    repository, _, revision = source.partition("@")
    try:
        rows = load_dataset(repository, name, split="test", revision=revision or None)
    except Exception as error:  # the hub's client raises many kinds of errors
        raise ValueError(
            f"{name} of {HUB}{source} could not be loaded ({_first_line(error)}): download the dataset's files "
            "to a folder, and give this folder as the source"
        ) from error
    return [_record(f"{source} {name} record {number}", dict(row)) for number, row in enumerate(rows, 1)]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
