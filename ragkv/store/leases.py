"""Leases: a job writes down which segments it needs and renews that while it lives; a killed job's lease runs out."""

import os
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from uuid import uuid4

from ragkv.store.files import Folder, StoreError


@dataclass(frozen=True)
class Lease:
    """Segments that a job needs: what it does, where it runs, and until when the lease stands (seconds)."""

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
        The subfolder that they lie in.
    seconds
        How long a lease stands without being renewed; clocks of machines that share a store must differ by less.
    """

    def __init__(self, folder: Folder, kind: str, seconds: float):
        self._folder, self._kind, self._seconds = folder, kind, seconds

    def standing(self) -> list[Lease]:
        """The leases that have not run out.

        Raises
        ------
        StoreError
            One cannot be read: as it is unknown what it says, nothing may be done against it.
        """
        return [lease for lease in self._read().values() if lease.until > time.time()]

    def sweep(self) -> None:
        """Remove leases that ran out: their jobs were killed."""
        for name, lease in self._read().items():
            if lease.until <= time.time():
                self._folder.remove(name)

    def _read(self) -> dict[str, Lease]:
        found = {}
        for entry in self._folder.list(self._kind):
            if entry.name.endswith(".json"):
                with suppress(FileNotFoundError):  # given back since
                    given = self._folder.read_json(entry.name)
                    found[entry.name] = Lease(**given | {"keys": frozenset(given["keys"])})
        return found

    @contextmanager
    def take(self, keys: Collection[str], job: str) -> Iterator[None]:
        """Hold a lease meanwhile.

        Raises
        ------
        StoreError
            The store cannot be written to.
        """
        name, ended = f"{self._kind}/{uuid4().hex}.json", Event()
        known = {"job": job, "host": socket.gethostname(), "pid": os.getpid(), "keys": sorted(keys)}

        def write() -> None:
            self._folder.write_json(name, known | {"until": time.time() + self._seconds})

        def renew() -> None:
            while not ended.wait(self._seconds / 10):
                with suppress(StoreError):  # the next time, perhaps: it stands for nine more
                    write()

        write()
        thread = Thread(target=renew, name=f"{self._kind}-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with suppress(StoreError):  # it runs out by itself
                self._folder.remove(name)
