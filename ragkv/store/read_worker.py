"""The program of a worker process: it reads byte ranges of files into shared memory (see `ragkv.loading.workers`).

It is run as a script and imports almost nothing, so it starts in about 50 ms.
"""

import json
import mmap
import os
import sys

import xxhash

BLOCK = 1 << 18  # bytes; small enough to be checked while still in the processor's cache


def main(memory_file: int) -> None:
    """Serve requests until standard input is closed.

    Each input line is a JSON list of byte ranges, the arguments of `read_range`. The answer is one byte: "." if every
    range was read and matches its checksum, otherwise "!".
    """
    memory = memoryview(mmap.mmap(memory_file, 0))
    for line in sys.stdin:
        try:
            intact = all([read_range(memory, *request) for request in json.loads(line)])
        except OSError:
            intact = False
        os.write(sys.stdout.fileno(), b"." if intact else b"!")


def read_range(memory: memoryview, path: str, start: int, size: int, salt: str, checksum: str, offset: int) -> bool:
    """Read `size` bytes of a file, from `start` on, to `offset` in the memory; return whether the checksum matches."""
    digest = new_checksum(salt)
    file = os.open(path, os.O_RDONLY)
    try:
        for done in range(0, size, BLOCK):
            block = memory[offset + done : offset + min(done + BLOCK, size)]
            if os.preadv(file, [block], start + done) < len(block):
                return False
            digest.update(block)
    finally:
        os.close(file)
    return digest.hexdigest() == checksum


def new_checksum(salt: str) -> xxhash.xxh3_128:
    """The checksum used in segment files, started with a salt."""
    return xxhash.xxh3_128(salt.encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
