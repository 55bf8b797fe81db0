"""Leases: a job writes down which segments it needs and renews that while it lives; a killed job's lease runs out."""

import os
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from uuid import uuid4

from ragkv.store.errors import StoreError
from ragkv.store.files import Folder

CLOCK_DIFFERENCE = 600.0  # seconds that the clocks of machines that share a store may differ by


@dataclass(frozen=True)
class Lease:
    """Segments that a job needs.

    Attributes
    ----------
    job
        What it does.
    host, pid
        Where it runs.
    until
        When the lease runs out, by that machine's clock (seconds since the epoch).
    keys
        Of the segments.
    """

    job: str
    host: str
    pid: int
    until: float
    keys: frozenset[str]


class Leases:
    """The leases of one kind in a store.

    Parameters
    ----------
    kind
        The subfolder for their files.
    seconds
        How long a lease stands without being renewed. Clocks may differ, so it is taken to stand for
        `CLOCK_DIFFERENCE` more.
    """

    def __init__(self, folder: Folder, kind: str, seconds: float):
        self._folder = folder
        self._kind = kind
        self._seconds = seconds

    def standing(self) -> list[Lease]:
        """The leases that have not run out.

        Raises
        ------
        StoreError
            Leases cannot be listed or read. As it is unknown what they say, nothing may be done against them.
        """
        return [lease for lease, stands in self._read().values() if stands]

    def sweep(self) -> None:
        """Remove leases that have run out, since their jobs were killed."""
        for name, (_, stands) in self._read().items():
            if not stands:
                self._folder.remove(name)

    def _read(self) -> dict[str, tuple[Lease, bool]]:
        """All leases by the names of their files, each with whether it stands."""
        leases = {}
        for entry in self._folder.list(self._kind):
            if entry.name.endswith(".json"):
                with suppress(FileNotFoundError):  # given back since it was listed
                    lease = self._folder.read_json(entry.name, _parse)
                    written = (lease.until - self._seconds, entry.modified)
                    leases[entry.name] = lease, any(map(self._is_recent, written))
        return leases

    def _is_recent(self, written: float) -> bool:
        """Whether a lease written at that time stands; a time in the far future comes from a clock that was wrong."""
        age = time.time() - written
        return -CLOCK_DIFFERENCE <= age < self._seconds + CLOCK_DIFFERENCE

    @contextmanager
    def take(self, keys: Collection[str], job: str) -> Iterator[None]:
        """Hold a lease meanwhile.

        Raises
        ------
        StoreError
            The store cannot be written to.
        """
        name = f"{self._kind}/{uuid4().hex}.json"
        pid = os.getpid()
        value = {"job": job, "host": socket.gethostname(), "pid": pid, "keys": sorted(set(keys))}
        ended = Event()

        def write() -> None:
            self._folder.write_json(name, value | {"until": time.time() + self._seconds})

        def renew() -> None:
            while not ended.wait(self._seconds / 10):
                try:
                    write()
                except StoreError:  # the disk may be full, but the file's time can still be set
                    with suppress(StoreError):
                        self._folder.touch(name)

        write()
        thread = Thread(target=renew, name=f"{self._kind}-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            if os.getpid() == pid:  # not in a forked child: the lease is its parent's
                ended.set()
                thread.join()
                with suppress(StoreError):  # then it runs out
                    self._folder.remove(name)


def _parse(value: dict) -> Lease:
    return Lease(
        job=_printable(value["job"]),
        host=_printable(value["host"]),
        pid=int(value["pid"]),
        until=float(value["until"]),
        keys=frozenset(map(str, value["keys"])),
    )


def _printable(value: object) -> str:
    """Text for a terminal, which control characters could confuse."""
    return "".join(character if character.isprintable() else "?" for character in str(value))
