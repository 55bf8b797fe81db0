"""A benchmark's records, read from JSON lines, JSON, parquet files or the Hugging Face hub."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from ragkv.extras import extra

Record = tuple[str, dict]  # its place ("hotpotqa.jsonl line 17"), and its fields
HUB = "hf:"


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
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: put the benchmark's files there ({name}.jsonl, ...)")
    for ending, read in ((".jsonl", _lines), (".json", _list), (".parquet", _parquet)):
        if (path := folder / (name + ending)).exists():
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
    for field, kind in fields.items():
        if field not in record:
            raise ValueError(f"{where}: the field {field!r} is missing; there are {', '.join(record) or 'none'}")
        if not isinstance(record[field], kind):
            kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise ValueError(f"{where}: the field {field!r} is {type(record[field]).__name__}, expected is {kinds}")


def _lines(path: Path, name: str) -> Iterator[Record]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            yield _record(f"{path} line {number}", _json(line, f"{path} line {number}"))


def _list(path: Path, name: str) -> Iterator[Record]:
    records = _json(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(records, list):
        raise ValueError(f"{path}: it must hold a list of records, it holds {type(records).__name__}")
    for number, record in enumerate(records, 1):
        yield _record(f"{path} record {number}", record)


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: this is no JSON ({error.msg} at column {error.colno})") from None


def _record(where: str, record: object) -> Record:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a record must be an object with fields, this is {type(record).__name__}")
    return where, record


def _parquet(path: Path, name: str) -> list[Record]:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: this is no parquet file ({str(error).splitlines()[0]})") from None
    if "dataset" in table and path.stem != name:
        table = table[table["dataset"] == name]
    rows = json.loads(table.to_json(orient="records", force_ascii=False))  # arrays become lists
    return [(f"{path} record {number}", row) for number, row in zip(table.index + 1, rows, strict=True)]


def _hub(source: str, name: str) -> list[Record]:
    with extra("hub", f"the source {HUB}{source}"):
        from datasets import load_dataset  # slow to import
    repository, _, revision = source.partition("@")
    try:
        rows = load_dataset(repository, name, split="test", revision=revision or None)
    except Exception as error:  # the hub's client raises many kinds of errors
        raise ValueError(
            f"{name} of {HUB}{source} could not be loaded ({str(error).splitlines()[0]}): download the dataset's files "
            "to a folder, and give this folder as the source"
        ) from error
    return [(f"{source} {name} record {number}", dict(row)) for number, row in enumerate(rows, 1)]
