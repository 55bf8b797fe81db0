"""Processes that read stored segments into memory that they share with this one.

Threads that read take turns with the one that starts the GPU's kernels: after each call into the system they wait for
the interpreter, and it waits for them. Processes have interpreters of their own, so reading neither slows the prefill
nor is slowed by it.
"""

import json
import mmap
import os
import select
import subprocess
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ragkv.store.segment_file import Piece

MOST = 16  # processes
OTHERS = 2  # processors that are left to this process
STEP = 1 << 28  # bytes that the memory grows by
_PROGRAM = Path(__file__).parents[1] / "store" / "read_process.py"


class ReadProcesses:
    """Some processes and the memory that they read into, for one reader at a time; started when first needed.

    Parameters
    ----------
    beside
        So many others like it share this machine's processors.
    """

    def __init__(self, beside: int = 0):
        self.count = max(1, min(MOST, (len(os.sched_getaffinity(0)) - OTHERS) // (1 + beside)))
        self._running: list[subprocess.Popen[bytes]] = []
        self._room = torch.empty(0, dtype=torch.uint8)
        self._asked, self._answered = 0, list[int]()  # batches; those that each process has answered
        self._dealt = 0  # pieces, one to each process in turn
        self._failed: set[int] = set()  # batches
        self._stop = weakref.finalize(self, _stopped, [], None)

    def room(self, size: int) -> Tensor:
        """Memory for a new reader, ``(size,)`` at least, pinned where there is a GPU; what it held before is lost.

        Raises
        ------
        MemoryError
            There is not so much.
        """
        alive = self._running and all(process.poll() is None for process in self._running)
        if alive and self._asked:
            self.whole(self._asked - 1)  # what a reader that was given up has asked for
        if not alive or len(self._room) < size:
            self._start(-(-size // STEP) * STEP)
        return self._room

    def ask(self, pieces: Sequence[tuple[Piece, int]]) -> int:
        """Have pieces read to their places in the room, beginning now; the number of this batch."""
        for number, process in enumerate(self._running):
            assert process.stdin is not None
            its = pieces[(number - self._dealt) % self.count :: self.count]
            given = json.dumps([(*piece, place) for piece, place in its])
            with suppress(BrokenPipeError):  # it will not answer either
                process.stdin.write(f"{given}\n".encode())
                process.stdin.flush()
        self._dealt, self._asked = self._dealt + len(pieces), self._asked + 1
        return self._asked - 1

    def has(self, batch: int) -> bool:
        """Whether all answers to a batch are there."""
        return self._listen(batch, wait=False)

    def whole(self, batch: int) -> bool:
        """Wait for a batch; whether all of it was read, and is as written. If not, read it here and see why."""
        self._listen(batch, wait=True)
        return batch not in self._failed

    def _listen(self, batch: int, *, wait: bool) -> bool:
        for number, process in enumerate(self._running):
            assert process.stdout is not None
            while self._answered[number] <= batch:
                if not wait and not _readable(process.stdout.fileno()):
                    return False
                answer = os.read(process.stdout.fileno(), 1)
                if not answer:  # it is ending: from here on it is known to have ended
                    process.wait()
                if answer != b".":
                    self._failed.add(self._answered[number])
                self._answered[number] += 1
        return True

    def _start(self, size: int) -> None:
        self._stop()
        self._running, memory = [], os.memfd_create("ragkv")
        os.ftruncate(memory, size)
        self._room = torch.frombuffer(mmap.mmap(memory, size), dtype=torch.uint8)
        pinned = self._room.data_ptr() if torch.cuda.is_available() else None
        if pinned is not None and not _pinned(pinned, size):
            os.close(memory)
            raise MemoryError(
                f"{size / 2**30:.2f} GiB of this machine's memory could not be pinned to read stored segments into: "
                "free memory, or give shorter prompts"
            )
        command = [sys.executable, "-P", str(_PROGRAM), str(memory)]
        found = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # what this process finds
        self._running = [
            subprocess.Popen(  # of a group of its own: an interrupt from the keyboard is for this process
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[memory], process_group=0, env=found
            )
            for _ in range(self.count)
        ]
        os.close(memory)
        self._asked, self._answered, self._failed = 0, [0] * self.count, set()
        self._stop = weakref.finalize(self, _stopped, self._running, pinned)


def _readable(file: int) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(0))


def _pinned(address: int, size: int) -> bool:
    """Have CUDA pin memory that is there already; whether it did."""
    cuda = torch.cuda.cudart()
    return cuda.cudaHostRegister(address, size, 0) == cuda.cudaError.success


def _stopped(running: Sequence[subprocess.Popen[bytes]], pinned: int | None) -> None:
    """End processes, and let go of pinned memory at an address."""
    if pinned is not None:
        torch.cuda.cudart().cudaHostUnregister(pinned)
    for process in running:
        process.communicate()  # the end of what it is asked for is its own
