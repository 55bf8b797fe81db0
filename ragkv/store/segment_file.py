"""The file format of a segment: safetensors with enough checksums to verify every bit without the model.

The header holds a checksum per tensor, which covers the tensor's name, dtype, shape and bytes; see
`ragkv.store.checksums`. The rest of the header is the segment's identity, from which the file's name is computed.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ragkv.store.checksums import Checksums
from ragkv.store.local_files import scatter
from ragkv.store.read_worker import same

FORMAT = 3
DTYPES = {  # in the order in which a file has its tensors
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_ORDER = {name: place for place, name in enumerate(DTYPES.values())}
BY_NAME = {name: dtype for dtype, name in DTYPES.items()}
KEY = re.compile(r"[0-9a-f]{64}")
_IDENTITY = ("format", "model", "dtype", "stored_as", "context", "ids")
_HEADER_GUESS = 1 << 14  # bytes; most headers are shorter, so one read is usually enough
_HEADER_LIMIT = 1 << 22  # bytes; one of a hundred layers has 15 kB


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
    """The header of a segment file.

    Attributes
    ----------
    identity
        Everything that determines the segment's values.
    tensors, checksums
        By name.
    key_id
        Of the key that the checksums were made with, if any.
    """

    identity: dict
    tensors: dict[str, TensorEntry]
    checksums: dict[str, str]
    key_id: str | None

    @cached_property
    def key(self) -> str:
        """The key of the segment with this identity."""
        return key_of(self.identity)


def hashed(value: object) -> str:
    """The SHA-256 hash of a value that JSON can represent."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def key_of(identity: dict) -> str:
    """The key of the segment with this identity."""
    return hashed([identity[field] for field in _IDENTITY])


def encode(identity: dict, tensors: dict[str, Tensor], checksums: Checksums) -> bytes:
    """The file of a segment; the tensors must be contiguous and on the CPU.

    The bytes are those that the library writes, which takes three times as long for many small tensors.
    """
    segment = key_of(identity)
    buffers = {name: as_bytes(tensor) for name, tensor in sorted(tensors.items())}
    entries = {name: (DTYPES[tensor.dtype], list(tensor.shape)) for name, tensor in tensors.items()}
    computed = {name: checksums.of(segment, name, *entries[name], data) for name, data in buffers.items()}
    metadata = identity | {"checksums": computed}
    if checksums.key_id:
        metadata["key"] = checksums.key_id

    names = sorted(buffers, key=lambda name: (_ORDER[entries[name][0]], name))
    stops = accumulate(len(buffers[name]) for name in names)
    header: dict[str, dict] = {"__metadata__": {"ragkv": json.dumps(metadata)}}
    for name, stop in zip(names, stops, strict=True):
        dtype, shape = entries[name]
        offsets = [stop - len(buffers[name]), stop]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors begin at multiples of eight bytes
    return b"".join([len(encoded).to_bytes(8, "little"), encoded, *(buffers[name] for name in names)])


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
    key_id = identity.pop("key", None)
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start <= stop):
            raise ValueError(f"the offsets of {name} make no sense")
        if not (isinstance(entry["dtype"], str) and all(isinstance(size, int) for size in entry["shape"])):
            raise ValueError(f"the dtype or shape of {name} makes no sense")
        tensors[name] = TensorEntry(entry["dtype"], entry["shape"], len(data) + start, len(data) + stop)
    if size != max(entry.stop for entry in tensors.values()):
        raise ValueError("it is cut short or too long")
    if checksums.keys() != tensors.keys() or identity.keys() != set(_IDENTITY):
        raise ValueError("its header does not have the fields of a segment")
    if not all(isinstance(value, str) for value in checksums.values()):
        raise ValueError("its checksums make no sense")
    if not all(isinstance(value, int) or value.isprintable() for value in identity.values()):
        raise ValueError("its identity makes no sense")
    return Header(identity, tensors, checksums, key_id)


def read_into(
    source: Source, header: Header, names: Sequence[str], buffers: Sequence[memoryview], checksums: Checksums
) -> None:
    """Fill one buffer per tensor; tensors that are neighbours in the file are read by a single call.

    Raises
    ------
    ValueError
        A tensor does not match its checksum, or a buffer does not have the tensor's size.
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
        _check_tensor(header, name, buffer, checksums)


def byte_range(path: str, header: Header, name: str, checksums: Checksums) -> ByteRange:
    """Where a tensor lies, for a process that only knows the file's path."""
    dtype, shape, start, stop = header.tensors[name]
    salt = checksums.salt(header.key, name, dtype, shape)
    return ByteRange(path, start, stop - start, salt, header.checksums[name])


def check_file(key: str, data: bytes | memoryview, checksums: Checksums) -> None:
    """Verify every bit of a segment's file.

    Raises
    ------
    ValueError
        The file is damaged, or belongs to another segment.
    WrongKeyError
        Its checksums were made with another key.
    """
    source = BytesSource(data)
    header = read_header(source)
    checksums.require(header.key_id, f"the file of segment {key}")
    if header.key != key:
        raise ValueError("its header does not belong to its name")
    for name, entry in header.tensors.items():
        _check_tensor(header, name, source.read(entry.start, entry.stop), checksums)


def _check_tensor(header: Header, name: str, data: bytes | memoryview, checksums: Checksums) -> None:
    entry = header.tensors[name]
    found = checksums.of(header.key, name, entry.dtype, entry.shape, data)
    if not same(found, header.checksums[name]):
        raise ValueError(f"{name} does not match its checksum")


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor, which must be contiguous and on the CPU."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())
