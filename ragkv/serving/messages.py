"""Messages between vLLM's processes and the worker: JSON, one per line, through a Unix socket.

The engine says ``hello`` and learns whether the worker has the same model. From then on each side may send at any time:

=========== ================================================ =========================================================
to worker   entries                                          answer
=========== ================================================ =========================================================
``hello``   ``protocol``, ``identity``                       ``welcome``; or ``refused``, with ``reason``
``prefill`` ``job``, ``buffer``, ``parts``, ``ids``          ``done`` with ``reused``, ``segments`` and ``seconds``;
                                                             or ``failed``, with ``reason``; both with ``job``
``cancel``  ``job``                                          none of its own: the job is answered either way
``add``     ``job``, ``documents``, ``chunk_tokens``         ``added``; or ``failed``
``status``                                                   ``status``
=========== ================================================ =========================================================

An answer to ``prefill`` says that the worker will not write to the buffer again.
"""

import json
import socket
from collections.abc import Iterator
from select import select
from typing import Any

PROTOCOL = 1
Message = dict[str, Any]


def encode(kind: str, **entries: object) -> bytes:
    """A message as it is sent."""
    return json.dumps({"type": kind, **entries}, separators=(",", ":")).encode() + b"\n"


class Connection:
    """A connection to a worker, from the side that asks. It never waits for a message.

    Parameters
    ----------
    address
        The path of the worker's socket.
    seconds
        How long sending may take.

    Raises
    ------
    OSError
        Nobody listens there.
    """

    def __init__(self, address: str, seconds: float = 2.0):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(seconds)
        self._received = b""
        try:
            self._socket.connect(address)
        except OSError:
            self._socket.close()
            raise

    def send(self, kind: str, **entries: object) -> None:
        """Send a message.

        Raises
        ------
        OSError
            The worker is gone, or does not take it.
        """
        self._socket.sendall(encode(kind, **entries))

    def receive(self, seconds: float = 0.0) -> Iterator[Message]:
        """The messages that have arrived; if there are none, those that arrive within some seconds.

        Raises
        ------
        OSError
            The worker is gone.
        ValueError
            It sent something that is not a message.
        """
        while select([self._socket], [], [], seconds)[0]:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionError("the worker closed the connection")
            *lines, self._received = (self._received + data).split(b"\n")
            yield from map(json.loads, lines)
            seconds = 0.0

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
