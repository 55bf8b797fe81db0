"""The file SHA256SUMS beside an embedded model's files, in the format of the program ``sha256sum``."""

import hashlib
from pathlib import Path

NAME = "SHA256SUMS"


def write_sums(folder: Path) -> None:
    """Write the hashes of all files in a folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != NAME)
    (folder / NAME).write_text("".join(f"{_hash(path)}  {path.name}\n" for path in files))


def changed(folder: Path) -> list[str]:
    """The files that are missing or differ from their hash; only SHA256SUMS itself, if that is missing."""
    sums = folder / NAME
    if not sums.is_file():
        return [NAME]
    expected = (line.split(maxsplit=1) for line in sums.read_text().splitlines())
    return [name for known, name in expected if not (folder / name).is_file() or _hash(folder / name) != known]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
