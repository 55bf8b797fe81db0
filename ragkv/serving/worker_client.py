"""The engine's side of the worker: which requests wait for it, and which buffers they hold. It never blocks the engine.

What the worker does not answer in time, or not at all, is refused with a reason; the engine then prefills it itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import Any

from ragkv.serving.buffers import Buffers
from ragkv.serving.messages import PROTOCOL, Connection, Message
from ragkv.serving.parts import Parts

_RECONNECT = 1.0  # seconds between attempts to reach a worker that is not there
_HELLO = 5.0  # seconds that a worker has to answer a new connection


@dataclass(frozen=True)
class Fused:
    """A prompt's keys and values, in a buffer.

    Attributes
    ----------
    buffer
        Its path.
    tokens
        Of the prompt.
    reused, segments
        How many of its stored segments there were, and how many it has.
    seconds
        What the prefill took, without waiting in the worker's queue.
    """

    buffer: str
    tokens: int
    reused: int
    segments: int
    seconds: float


@dataclass(frozen=True)
class Refused:
    """Why a request is not fused."""

    reason: str


@dataclass
class _Request:
    """A request of the engine."""

    parts: Parts
    ids: Sequence[int]
    job: int | None = None  # what it was sent as
    answer: Fused | Refused | None = None


@dataclass
class _Job:
    """What the worker is computing, or will. It holds a buffer until it is answered."""

    buffer: str
    deadline: float
    request: str | None  # None if nobody waits for it any more


class WorkerClient:
    """Sends requests to the worker and remembers what it answered.

    Parameters
    ----------
    address
        The path of the worker's socket.
    identity
        Of the engine's model, see `ragkv.serving.identity`.
    buffers
        To lend to the worker.
    timeout
        Seconds that the worker has for a request, once it has a buffer.
    queue
        How many requests may wait for a buffer.
    """

    def __init__(self, address: str, identity: str, buffers: Buffers, *, timeout: float = 60.0, queue: int = 256):
        self._address = address
        self._identity = identity
        self._buffers = buffers
        self._timeout = timeout
        self._queue = queue
        self._connection: Connection | None = None
        self._problem = ""  # why there is no connection
        self._next_attempt = 0.0
        self._requests: dict[str, _Request] = {}
        self._jobs: dict[int, _Job] = {}
        self._numbers = count(1)

    def ask(self, name: str, parts: Parts, ids: Sequence[int]) -> Fused | Refused | None:
        """The answer to a request; None if it is still to come. The first call sends it.

        Parameters
        ----------
        name
            Of the request.
        """
        self._receive()
        request = self._requests.get(name)
        if request is None:
            request = self._requests[name] = _Request(parts, ids)
            if sum(other.job is None and other.answer is None for other in self._requests.values()) > self._queue:
                request.answer = Refused(f"{self._queue} requests wait for the worker already")
        if request.answer is None:
            request.answer = self._send(name, request) if request.job is None else self._overdue(request.job)
        return request.answer

    def answer(self, name: str) -> Fused:
        """The answer to a request that was fused."""
        answer = self._requests[name].answer
        assert isinstance(answer, Fused)
        return answer

    def loaded(self, name: str) -> None:
        """The engine has read the buffer."""
        request = self._requests.pop(name, None)
        if request is not None and isinstance(request.answer, Fused):
            self._buffers.give_back(request.answer.buffer)

    def forget(self, name: str) -> None:
        """The request has ended, with or without having been read."""
        request = self._requests.get(name)
        if request is not None and request.answer is None and request.job is not None:
            self._abandon(request.job)
        self.loaded(name)
        self._requests.pop(name, None)

    def close(self) -> None:
        """Close the connection and remove the buffers."""
        if self._connection is not None:
            self._connection.close()
        self._buffers.close()

    def _send(self, name: str, request: _Request) -> Refused | None:
        """Send a request if the worker and a buffer are there."""
        connection = self._connected()
        if connection is None:
            return Refused(self._problem)
        buffer = self._buffers.take()
        if buffer is None:
            if self._jobs and all(job.request is None for job in self._jobs.values()):
                return Refused("the worker is too slow: it still holds the buffers of requests that ended before")
            return None
        job = next(self._numbers)
        self._jobs[job] = _Job(buffer, monotonic() + self._timeout, name)
        request.job = job
        entries: dict[str, Any] = {"buffer": buffer, "parts": request.parts.params(), "ids": list(request.ids)}
        try:
            connection.send("prefill", job=job, **entries)
        except OSError as error:
            self._lose(error)
        return request.answer if isinstance(request.answer, Refused) else None

    def _overdue(self, number: int) -> Refused | None:
        if monotonic() < self._jobs[number].deadline:
            return None
        self._abandon(number)
        return Refused(f"the worker did not answer within {self._timeout:g} s")

    def _abandon(self, number: int) -> None:
        """Nobody waits for a job any more. Its buffer stays with the worker until the job is answered."""
        self._jobs[number].request = None
        if self._connection is not None:
            try:
                self._connection.send("cancel", job=number)
            except OSError as error:
                self._lose(error)

    def _connected(self) -> Connection | None:
        """The connection; made now if there is none, and the last attempt is not too recent."""
        if self._connection is None and monotonic() >= self._next_attempt:
            self._next_attempt = monotonic() + _RECONNECT
            try:
                self._connection = self._connect()
            except (OSError, ValueError) as error:
                self._problem = f"there is no worker at {self._address} ({error})"
        return self._connection

    def _connect(self) -> Connection | None:
        connection = Connection(self._address)
        connection.send("hello", protocol=PROTOCOL, identity=self._identity)
        answer = next(connection.receive(_HELLO), None)
        if answer is not None and answer["type"] == "welcome":
            return connection
        connection.close()
        self._problem = "the worker does not answer" if answer is None else str(answer.get("reason"))
        return None

    def _receive(self) -> None:
        if self._connection is None:
            return
        try:
            for message in self._connection.receive():
                self._handle(message)
        except (OSError, ValueError, KeyError) as error:
            self._lose(error)

    def _handle(self, message: Message) -> None:
        job = self._jobs.pop(message["job"])
        request = self._requests.get(job.request) if job.request is not None else None
        if request is not None and message["type"] == "done":
            details = (message["reused"], message["segments"], message["seconds"])
            request.answer = Fused(job.buffer, request.parts.tokens, *details)
            return
        self._buffers.give_back(job.buffer)
        if request is not None:
            request.answer = Refused(str(message.get("reason")))

    def _lose(self, error: Exception) -> None:
        """The worker is gone: what it had is refused, and its buffers are not used again."""
        assert self._connection is not None
        self._connection.close()
        self._connection = None
        self._next_attempt = 0.0
        self._problem = f"the worker is gone ({error})"
        for job in self._jobs.values():
            self._buffers.discard(job.buffer)
            if job.request is not None:
                self._requests[job.request].answer = Refused(self._problem)
        self._jobs.clear()
