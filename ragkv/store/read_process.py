"""A process that reads pieces of files into shared memory, as it is told (`ragkv.loading.processes`).

Run as a script, it imports next to nothing, so it begins in a twentieth of a second.
"""

import json
import mmap
import os
import sys

import xxhash

BLOCK = 1 << 18  # bytes: what was read is checked while the processor's cache still holds it


def main(memory: int) -> None:
    """Each line names pieces; the answer is one byte: "." if all were read and are as written."""
    room = memoryview(mmap.mmap(memory, 0))
    for line in sys.stdin:
        try:
            whole = all([read(room, *piece) for piece in json.loads(line)])
        except OSError:
            whole = False
        os.write(sys.stdout.fileno(), b"." if whole else b"!")


def read(room: memoryview, path: str, start: int, size: int, salt: str, checksum: str, at: int) -> bool:
    """A piece to its place in the room; whether it is as its checksum says."""
    digest, file = salted(salt), os.open(path, os.O_RDONLY)
    try:
        for done in range(0, size, BLOCK):
            block = room[at + done : at + min(done + BLOCK, size)]
            if os.preadv(file, [block], start + done) < len(block):
                return False
            digest.update(block)
    finally:
        os.close(file)
    return digest.hexdigest() == checksum


def salted(salt: str) -> xxhash.xxh3_128:
    """The checksum of segments' files, of nothing but a salt yet."""
    return xxhash.xxh3_128(salt.encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
