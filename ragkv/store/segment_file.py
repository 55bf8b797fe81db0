"""The file format of a segment: safetensors with enough checksums to verify every bit without the model.

The header holds a checksum per tensor, which covers the tensor's name, dtype, shape and bytes. The rest of the header
is the segment's identity, from which the file's name is computed.
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

from ragkv.store.read_worker import new_checksum

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
_HEADER_GUESS = 1 << 14  # bytes; most headers are shorter, so one read is usually enough
_HEADER_LIMIT = 100_000_000  # bytes; the limit of the safetensors format itself


class Source(Protocol):
    """The bytes of a segment file.

    Attributes
    ----------
    size
        In bytes.
    local
        The path at which other processes on this machine can read the file; None if there is no such path.
    """

    size: int
    local: str | None

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes from `start` up to `stop`; fewer where the file ends before."""

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers one after the other with the bytes from `start` on; return the number of bytes read."""


class BytesSource:
    """A segment file that was read as a whole."""

    local: str | None = None

    def __init__(self, data: bytes | memoryview):
        self._data = memoryview(data)
        self.size = len(data)

    def read(self, start: int, stop: int) -> memoryview:
        return self._data[start:stop]

    def read_into(self, start: int, buffers: Sequence[memoryview]) -> int:
        return scatter(self._data[start:], buffers)


def scatter(data: bytes | memoryview, buffers: Sequence[memoryview]) -> int:
    """Copy bytes into the buffers, one after the other; return how many were copied."""
    done = 0
    for buffer in buffers:
        block = data[done : done + len(buffer)]
        buffer[: len(block)] = block
        done += len(block)
    return done


class TensorEntry(NamedTuple):
    """A tensor according to the header: the name of its dtype, its shape, and its byte offsets in the file."""

    dtype: str
    shape: list[int]
    start: int
    stop: int


class ByteRange(NamedTuple):
    """A range of a local file's bytes, with the checksum of a salt followed by these bytes."""

    path: str
    start: int
    size: int
    salt: str
    checksum: str


@dataclass(frozen=True)
class Header:
    """The header of a segment file: the segment's identity, its tensors and their checksums, both by name."""

    identity: dict
    tensors: dict[str, TensorEntry]
    checksums: dict[str, str]


def hashed(value: object) -> str:
    """The SHA-256 hash of a value that JSON can represent."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def key_of(identity: dict) -> str:
    """The key of the segment with this identity."""
    return hashed([identity[field] for field in _IDENTITY])


def encode(identity: dict, tensors: dict[str, Tensor]) -> bytes:
    """The file of a segment; the tensors must be contiguous and on the CPU."""
    checksums = {
        name: checksum(name, DTYPES[tensor.dtype], list(tensor.shape), as_bytes(tensor))
        for name, tensor in sorted(tensors.items())
    }
    return safetensors.torch.save(tensors, {"ragkv": json.dumps(identity | {"checksums": checksums})})


def read_header(source: Source) -> Header:
    """Read and check the header of a file.

    Raises
    ------
    ValueError
        The file is damaged.
    """
    try:
        return _parsed(source.size, _header_bytes(source))
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its header cannot be read: {type(error).__name__}: {error}") from error


def _header_bytes(source: Source) -> bytes:
    """The file up to its first tensor."""
    first = bytes(source.read(0, _HEADER_GUESS))
    stop = 8 + int.from_bytes(first[:8], "little")
    if stop > _HEADER_LIMIT:
        raise ValueError("its header's length makes no sense")
    data = first[:stop] if stop <= len(first) else bytes(source.read(0, stop))
    if len(data) < stop:
        raise ValueError("it is cut short")
    return data


def _parsed(size: int, data: bytes) -> Header:
    """The header in `data`, the beginning of a file of `size` bytes."""
    header = json.loads(data[8:])
    identity = json.loads(header.pop("__metadata__")["ragkv"])
    checksums = identity.pop("checksums")
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start <= stop):
            raise ValueError(f"the offsets of {name} make no sense")
        tensors[name] = TensorEntry(entry["dtype"], entry["shape"], len(data) + start, len(data) + stop)
    if size != max(entry.stop for entry in tensors.values()):
        raise ValueError("it is cut short or too long")
    if checksums.keys() != tensors.keys() or identity.keys() != set(_IDENTITY):
        raise ValueError("its header does not have the fields of a segment")
    return Header(identity, tensors, checksums)


def read_tensor(source: Source, header: Header, name: str) -> bytes | memoryview:
    """The bytes of a tensor.

    Raises
    ------
    ValueError
        The tensor does not match its checksum.
    """
    entry = header.tensors[name]
    data = source.read(entry.start, entry.stop)
    _check_tensor(header, name, data)
    return data


def read_into(source: Source, header: Header, names: Sequence[str], buffers: Sequence[memoryview]) -> None:
    """Fill one buffer per tensor; tensors that are neighbours in the file are read by a single call.

    Raises
    ------
    ValueError
        As `read_tensor`; also if a buffer does not have the tensor's size.
    """
    entries = [header.tensors[name] for name in names]
    if [entry.stop - entry.start for entry in entries] != [len(buffer) for buffer in buffers]:
        raise ValueError("its tensors are not as large as their shapes say")
    if all(entry.stop == following.start for entry, following in pairwise(entries)):
        reads = [(entries[0].start, buffers)]
    else:
        reads = [(entry.start, [buffer]) for entry, buffer in zip(entries, buffers, strict=True)]
    for start, targets in reads:
        if source.read_into(start, targets) != sum(map(len, targets)):
            raise ValueError("it is cut short")
    for name, buffer in zip(names, buffers, strict=True):
        _check_tensor(header, name, buffer)


def byte_range(path: str, header: Header, name: str) -> ByteRange:
    """Where a tensor lies, for a process that only knows the file's path."""
    dtype, shape, start, stop = header.tensors[name]
    return ByteRange(path, start, stop - start, _salt(name, dtype, shape), header.checksums[name])


def check_file(key: str, data: bytes | memoryview) -> None:
    """Verify every bit of a segment's file.

    Raises
    ------
    ValueError
        The file is damaged, or belongs to another key.
    """
    source = BytesSource(data)
    header = read_header(source)
    if key_of(header.identity) != key:
        raise ValueError("its header does not belong to its name")
    for name in header.tensors:
        read_tensor(source, header, name)


def _check_tensor(header: Header, name: str, data: bytes | memoryview) -> None:
    entry = header.tensors[name]
    if checksum(name, entry.dtype, entry.shape, data) != header.checksums[name]:
        raise ValueError(f"{name} does not match its checksum")


def checksum(name: str, dtype: str, shape: list[int], data: bytes | memoryview) -> str:
    """The checksum of a tensor."""
    digest = new_checksum(_salt(name, dtype, shape))
    digest.update(data)
    return digest.hexdigest()


def _salt(name: str, dtype: str, shape: list[int]) -> str:
    return json.dumps([name, dtype, shape])


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor, which must be contiguous and on the CPU."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())
