"""Worker processes that read byte ranges of files into memory shared with this process.

Threads cannot do this as well: after every system call a thread has to wait for the interpreter, which the thread that
launches the GPU's kernels needs too, so reading and launching delay each other. Processes have their own interpreters.
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

from ragkv.loading.pinned import pin, unpin
from ragkv.store.segment_file import ByteRange

MAX_WORKERS = 16
SPARE_CPUS = 2  # left to this process
PATIENCE = 5.0  # seconds for a worker to end by itself
NO_BATCH = -1
BUFFER_STEP = 1 << 28  # bytes; the buffer grows by multiples of this
_PROGRAM = Path(__file__).parents[1] / "store" / "read_worker.py"


class ReadWorkers:
    """Worker processes and the buffer that they read into, started when first needed; for one reader at a time.

    They serve the process that started them. A forked child gets workers of its own when it asks for the buffer; until
    then all of its batches fail, so that it reads by itself.

    Parameters
    ----------
    others
        How many further `ReadWorkers` share this machine's CPUs.

    Attributes
    ----------
    count
        Number of worker processes.
    """

    def __init__(self, others: int = 0):
        cpus = len(os.sched_getaffinity(0)) - SPARE_CPUS
        self.count = max(1, min(MAX_WORKERS, cpus // (1 + others)))
        self._owner = os.getpid()
        self._workers: list[subprocess.Popen[bytes]] = []
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._submitted = 0  # batches
        self._answered: list[int] = []  # by worker, the number of batches it has answered
        self._failed: set[int] = set()  # batches
        self._next_worker = 0  # the one that gets the next byte range
        self._stop = weakref.finalize(self, _stop_workers, self._owner, [], None)

    @property
    def _inherited(self) -> bool:
        """Whether this is a forked child, and the workers are its parent's."""
        return self._owner != os.getpid()

    def buffer(self, size: int) -> Tensor:
        """The buffer, of at least `size` bytes, ``(bytes,)``; pinned where there is a GPU. Its contents are undefined.

        Raises
        ------
        MemoryError
            There is not enough memory that can be pinned.
        """
        if self._inherited:
            self._owner = os.getpid()
            self._workers = []
        alive = self._workers and all(worker.poll() is None for worker in self._workers)
        if alive and self._submitted:
            self.wait(self._submitted - 1)  # a reader that was abandoned may have left requests behind
        if not alive or len(self._buffer) < size:
            steps = -(-size // BUFFER_STEP)
            self._start(steps * BUFFER_STEP)
        return self._buffer

    def submit(self, requests: Sequence[tuple[ByteRange, int]]) -> int:
        """Have byte ranges read, each to its offset in the buffer; return the number of this batch at once."""
        if self._inherited:
            return NO_BATCH
        for number, worker in enumerate(self._workers):
            assert worker.stdin is not None
            share = requests[(number - self._next_worker) % self.count :: self.count]
            line = json.dumps([(*byte_range, offset) for byte_range, offset in share])
            with suppress(BrokenPipeError):  # the worker has ended; `wait` finds out
                worker.stdin.write(f"{line}\n".encode())
                worker.stdin.flush()
        self._next_worker += len(requests)
        self._submitted += 1
        return self._submitted - 1

    def done(self, batch: int) -> bool:
        """Whether all workers have answered a batch."""
        return self._receive(batch, block=False)

    def wait(self, batch: int) -> bool:
        """Wait for a batch; return whether all of it was read and matches its checksums.

        Workers do not say what went wrong. To find out, read the same ranges in this process.
        """
        self._receive(batch, block=True)
        return not self._inherited and batch != NO_BATCH and batch not in self._failed

    def _receive(self, batch: int, *, block: bool) -> bool:
        """Receive answers up to this batch; return whether all of them have arrived."""
        if self._inherited:
            return True
        for number, worker in enumerate(self._workers):
            assert worker.stdout is not None
            while self._answered[number] <= batch:
                if not block and not _has_input(worker.stdout.fileno()):
                    return False
                answer = os.read(worker.stdout.fileno(), 1)
                if not answer:
                    worker.wait()  # it is ending; from here on `poll` says so
                if answer != b".":
                    self._failed.add(self._answered[number])
                self._answered[number] += 1
        return True

    def _start(self, size: int) -> None:
        self._stop()
        self._workers = []
        memory_file = os.memfd_create("ragkv")
        try:
            os.ftruncate(memory_file, size)
            self._buffer = torch.frombuffer(mmap.mmap(memory_file, size), dtype=torch.uint8)
            pinned_at = self._buffer.data_ptr() if torch.cuda.is_available() else None
            if pinned_at is not None and pin(pinned_at, size) is not None:
                raise MemoryError(
                    f"{size / 2**30:.2f} GiB of this machine's memory could not be pinned to read stored segments "
                    "into: free memory, or give shorter prompts"
                )
            self._workers = [_start_worker(memory_file) for _ in range(self.count)]
        finally:
            os.close(memory_file)
        self._submitted = 0
        self._answered = [0] * self.count
        self._failed = set()
        self._stop = weakref.finalize(self, _stop_workers, self._owner, self._workers, pinned_at)


def _start_worker(memory_file: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", str(_PROGRAM), str(memory_file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[memory_file],
        process_group=0,  # Ctrl-C is meant for this process, not for its workers
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},  # workers find the same packages
    )


def _has_input(file: int) -> bool:
    """Whether a file can be read without blocking."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(0))


def _stop_workers(owner: int, workers: Sequence[subprocess.Popen[bytes]], pinned_at: int | None) -> None:
    """Unpin the buffer and end the workers; in a forked child, leave its parent's alone."""
    if owner != os.getpid():
        return
    if pinned_at is not None:
        unpin(pinned_at)
    for worker in workers:
        assert worker.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already
            worker.stdin.write(b"\n")  # ends it, even if a forked child keeps its standard input open
            worker.stdin.close()
    for worker in workers:
        try:
            worker.wait(PATIENCE)
        except subprocess.TimeoutExpired:  # it was stopped, or its disk does not answer
            worker.kill()
            worker.wait()
        assert worker.stdout is not None
        worker.stdout.close()
