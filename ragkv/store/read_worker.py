"""The program of a worker process: it reads byte ranges of files into shared memory (see `ragkv.loading.workers`).

It is run as a script and imports almost nothing, so it starts in about 50 ms. What it shares with the store is here.
"""

import hmac
import json
import mmap
import os
import stat
import sys
from typing import Protocol

import xxhash

BLOCK = 1 << 18  # bytes; small enough to be checked while still in the processor's cache
KEYED = "hmac-sha256:"  # begins a salt that is a key


class Checksum(Protocol):
    """A checksum that is being computed."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


def main(memory_file: int) -> None:
    """Serve requests until standard input is closed, or an empty line arrives.

    Each line is a JSON list of byte ranges, the arguments of `read_range`. The answer is one byte: "." if every range
    was read and matches its checksum, otherwise "!".
    """
    memory = memoryview(mmap.mmap(memory_file, 0))
    for line in sys.stdin:
        if not line.strip():
            return
        try:
            intact = all([read_range(memory, *request) for request in json.loads(line)])
        except OSError:
            intact = False
        os.write(sys.stdout.fileno(), b"." if intact else b"!")


def read_range(memory: memoryview, path: str, start: int, size: int, salt: str, checksum: str, offset: int) -> bool:
    """Read `size` bytes of a file, from `start` on, to `offset` in the memory; return whether the checksum matches."""
    digest = new_checksum(salt)
    file = open_regular(path)
    try:
        for done in range(0, size, BLOCK):
            block = memory[offset + done : offset + min(done + BLOCK, size)]
            if os.preadv(file, [block], start + done) < len(block):
                return False
            digest.update(block)
    finally:
        os.close(file)
    return same(digest.hexdigest(), checksum)


def open_regular(path: str) -> int:
    """Open a file for reading; an OSError for folders, devices and pipes, as reading from those could wait for ever."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError("it is not a regular file: remove it")
    return file


def same(checksum: str, expected: str) -> bool:
    """Compare checksums, in a time that does not depend on where they differ."""
    return hmac.compare_digest(checksum.encode(), expected.encode())


def new_checksum(salt: str) -> Checksum:
    """The checksum used in segment files, started with a salt: XXH3, or HMAC-SHA256 where the salt is a key."""
    if salt.startswith(KEYED):
        return hmac.new(bytes.fromhex(salt.removeprefix(KEYED)), digestmod="sha256")
    return xxhash.xxh3_128(salt.encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
