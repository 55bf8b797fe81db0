"""The processes of `ragkv serve`: the worker, which is started again when it dies, and vLLM's server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread

from ragkv.serving.settings import VARIABLE, Settings

_LONGEST_PAUSE = 32.0  # seconds before a worker that does not get ready is started again


class WorkerProcess:
    """A worker in a process of its own. While this object is open, a worker that dies is started again.

    Attributes
    ----------
    process
        The one that runs now.
    starts
        How many there have been.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.starts = 0
        self._closing = Event()
        self.process = self._start()
        self._keeper = Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.set()
        while self._keeper.is_alive():
            self.process.terminate()  # again if it was just started
            self._keeper.join(0.5)

    def wait_until_ready(self, seconds: float = 600.0) -> None:
        """Wait until the worker listens.

        Raises
        ------
        RuntimeError
            It ended instead, or takes too long.
        """
        until = time.monotonic() + seconds
        while not Path(self.settings.address).exists():
            if self.process.poll() is not None:
                raise RuntimeError(f"the worker ended with exit code {self.process.returncode}: see its messages above")
            if time.monotonic() > until:
                raise RuntimeError(f"the worker is not ready after {seconds:g} s")
            time.sleep(0.1)

    def _start(self) -> subprocess.Popen[bytes]:
        Path(self.settings.address).unlink(missing_ok=True)
        self.starts += 1
        parent = str(os.getpid())
        return subprocess.Popen([sys.executable, "-m", "ragkv.serving.worker", parent, self.settings.to_json()])

    def _keep(self) -> None:
        pause = 0.5
        while True:
            code = self.process.wait()
            was_ready = Path(self.settings.address).exists()
            pause = 0.5 if was_ready else min(2 * pause, _LONGEST_PAUSE)
            if self._closing.wait(pause):
                return
            print(f"the worker ended with exit code {code} and is started again", file=sys.stderr, flush=True)
            self.process = self._start()


def transfer_config(settings: Settings, *, timeout: float = 60.0, buffers: int = 4) -> dict:
    """The option ``--kv-transfer-config`` of vLLM: it loads the connector, and recomputes what cannot be loaded."""
    return {
        "kv_connector": "RagkvConnector",
        "kv_connector_module_path": "ragkv.serving.connector",
        "kv_role": "kv_consumer",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"address": settings.address, "timeout": timeout, "buffers": buffers},
    }


def vllm_command(settings: Settings, name: str, config: dict, arguments: list[str]) -> list[str]:
    """The command that starts vLLM's OpenAI-compatible server with the connector and the HTTP layer."""
    return [
        *(sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", settings.model),
        *("--served-model-name", name, "--dtype", settings.dtype),
        *("--kv-transfer-config", json.dumps(config)),
        *("--middleware", "ragkv.serving.http.Middleware"),
        *arguments,
    ]


def run_server(command: list[str], settings: Settings) -> int:
    """Run vLLM's server until it ends, and return its exit code. A signal to this process reaches it, too.

    vLLM does not end its engines if it is told to end while it starts, so they are one process group.
    """
    group = [sys.executable, "-m", "ragkv.serving.children", str(os.getpid()), *command]
    server = subprocess.Popen(group, env=os.environ | {VARIABLE: settings.to_json()})
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.terminate())
    return server.wait()
