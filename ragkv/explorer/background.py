"""Work in the background, so that the page stays alive: with progress, and stopped when it is no longer wanted."""

from collections.abc import Callable
from threading import Event, Thread

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, and how much there is


def ignore(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


class Cancelled(Exception):
    """Raised by progress to stop work that is no longer wanted."""


class Job:
    """One piece of work in a thread of its own, which begins when the one before it has ended.

    Parameters
    ----------
    work
        Is called with a function that reports progress, and lets `Cancelled` through.
    report
        Takes the progress while the work is wanted.
    before
        An earlier job, which is no longer wanted.
    """

    def __init__(self, work: Callable[[Progress], None], report: Progress, before: "Job | None" = None):
        self._work = work
        self._report = report
        self._before = before
        self._unwanted = Event()
        if before is not None:
            before.cancel()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Let the work stop as soon as it next reports progress."""
        self._unwanted.set()

    def wait(self) -> None:
        """Wait until the work has ended or stopped."""
        self._thread.join()

    def _run(self) -> None:
        if self._before is not None:
            self._before.wait()
            self._before = None
        self._work(self._checked)

    def _checked(self, what: str, done: int, total: int) -> None:
        if self._unwanted.is_set():
            raise Cancelled
        self._report(what, done, total)
