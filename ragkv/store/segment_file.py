"""A segment's file: safetensors whose every meaningful bit can be checked without the model.

The tensors' checksums lie in the header and cover their names, dtypes and shapes; the rest of the header determines
the file's name.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import safetensors.torch
import torch
from torch import Tensor

from ragkv.store.read_process import salted

FORMAT = 3
DTYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
}
BY_NAME = {name: dtype for dtype, name in DTYPES.items()}
KEY = re.compile(r"[0-9a-f]{64}")
_IDENTITY = ("format", "model", "dtype", "stored_as", "context", "ids")
_HEADER_GUESS = 1 << 14  # most headers are shorter, and one read is cheaper than two


class Source(Protocol):
    """A file's bytes, wherever they lie.

    Attributes
    ----------
    local
        The path by which any process of this machine can read them, if there is one.
    """

    size: int
    local: str | None

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """Those from `start` up to `stop`, fewer at its end."""

    def read_into(self, start: int, rooms: Sequence[memoryview]) -> int:
        """Fill the rooms one after the other with those from `start` on; how many there were."""


class InMemory:
    """A file that was read whole."""

    local: str | None = None

    def __init__(self, data: bytes | memoryview):
        self.size, self._data = len(data), memoryview(data)

    def read(self, start: int, stop: int) -> memoryview:
        return self._data[start:stop]

    def read_into(self, start: int, rooms: Sequence[memoryview]) -> int:
        return spread(self.read(start, start + sum(map(len, rooms))), rooms)


def spread(data: bytes | memoryview, rooms: Sequence[memoryview]) -> int:
    """Copy bytes into the rooms, one after the other; how many there were."""
    at = 0
    for room in rooms:
        part = data[at : at + len(room)]
        room[: len(part)] = part
        at += len(part)
    return at


class TensorEntry(NamedTuple):
    """A tensor in a header: its dtype's name and shape, and where its bytes lie in the file."""

    dtype: str
    shape: list[int]
    start: int
    stop: int


class Piece(NamedTuple):
    """Bytes of a local file, and the checksum of a salt and them."""

    path: str
    start: int
    size: int
    salt: str
    checksum: str


@dataclass(frozen=True)
class Header:
    """What a file says of itself: what it is of, its tensors, and their checksums."""

    identity: dict
    tensors: dict[str, TensorEntry]
    checksums: dict[str, str]


def hashed(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def key_of(identity: dict) -> str:
    """The name of the segment with this identity."""
    return hashed([identity[field] for field in _IDENTITY])


def encode(identity: dict, tensors: dict[str, Tensor]) -> bytes:
    """The file of a segment; the tensors are contiguous and on the CPU."""
    checksums = {
        name: checksum(name, DTYPES[tensor.dtype], list(tensor.shape), as_bytes(tensor))
        for name, tensor in sorted(tensors.items())
    }
    return safetensors.torch.save(tensors, {"ragkv": json.dumps(identity | {"checksums": checksums})})


def read_header(source: Source) -> Header:
    """A file's header.

    Raises
    ------
    ValueError, LookupError, TypeError, AttributeError
        It is damaged.
    """
    first = bytes(source.read(0, _HEADER_GUESS))
    start = 8 + int.from_bytes(first[:8], "little")
    if start > 100_000_000:  # the format's own limit
        raise ValueError("its header's length makes no sense")
    if start > len(first):
        first = bytes(source.read(0, start))
    header = json.loads(first[8:start])
    identity = json.loads(header.pop("__metadata__")["ragkv"])
    checksums = identity.pop("checksums")
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        tensors[name] = TensorEntry(entry["dtype"], entry["shape"], start + first, start + last)
    if source.size != max(entry.stop for entry in tensors.values()):
        raise ValueError("it is cut short or too long")
    if checksums.keys() != tensors.keys() or identity.keys() != set(_IDENTITY):
        raise ValueError("its header is not what a segment has")
    return Header(identity, tensors, checksums)


def read_tensor(source: Source, header: Header, name: str) -> bytes | memoryview:
    """A tensor's bytes.

    Raises
    ------
    ValueError
        They, the tensor's dtype or its shape are not as written.
    """
    entry = header.tensors[name]
    data = source.read(entry.start, entry.stop)
    if checksum(name, entry.dtype, entry.shape, data) != header.checksums[name]:
        raise ValueError(f"{name} does not match its checksum")
    return data


def read_into(source: Source, header: Header, names: Sequence[str], rooms: Sequence[memoryview]) -> None:
    """Fill rooms with the bytes of tensors, by one read where they lie side by side.

    Raises
    ------
    ValueError
        As `read_tensor`.
    """
    entries = [header.tensors[name] for name in names]
    if [entry.stop - entry.start for entry in entries] != [len(room) for room in rooms]:
        raise ValueError("its tensors are not as large as their shapes say")
    side_by_side = all(one.stop == other.start for one, other in pairwise(entries))
    parts = (
        [(entries[0].start, rooms)] if side_by_side else [(e.start, [r]) for e, r in zip(entries, rooms, strict=True)]
    )
    for start, part in parts:
        if source.read_into(start, part) != sum(map(len, part)):
            raise ValueError("it is cut short")
    for name, entry, room in zip(names, entries, rooms, strict=True):
        if checksum(name, entry.dtype, entry.shape, room) != header.checksums[name]:
            raise ValueError(f"{name} does not match its checksum")


def piece_of(path: str, header: Header, name: str) -> Piece:
    """A tensor, for a process that has only its file's path."""
    dtype, shape, start, stop = header.tensors[name]
    return Piece(path, start, stop - start, _salt(name, dtype, shape), header.checksums[name])


def check_file(key: str, data: bytes | memoryview) -> None:
    """Check every bit of a segment's file; errors as in `read_header`."""
    source = InMemory(data)
    header = read_header(source)
    if key_of(header.identity) != key:
        raise ValueError("its header does not belong to its name")
    for name in header.tensors:
        read_tensor(source, header, name)


def checksum(name: str, dtype: str, shape: list[int], data: bytes | memoryview) -> str:
    digest = salted(_salt(name, dtype, shape))
    digest.update(data)
    return digest.hexdigest()


def _salt(name: str, dtype: str, shape: list[int]) -> str:
    return json.dumps([name, dtype, shape])


def as_bytes(tensor: Tensor) -> memoryview:
    """A tensor's memory; it is contiguous and on the CPU."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())
