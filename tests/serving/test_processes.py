"""What becomes of the processes of `ragkv serve`, without vLLM."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

from helpers import ROOT

# Starts a worker and a process in place of vLLM's server, and prints the ids of both.
PARENT = """
import sys
from ragkv.serving.processes import WorkerProcess, run_server
from ragkv.serving.settings import Settings

settings = Settings.from_json(sys.argv[1])
worker = WorkerProcess(settings)
print(worker.process.pid, flush=True)
run_server([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"], settings)
"""


def test_the_worker_and_the_server_end_when_their_parent_is_killed(settings):
    command = [sys.executable, "-c", PARENT, settings.to_json()]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    children = [int(parent.stdout.readline()) for _ in range(2)]
    try:
        parent.kill()
        parent.communicate(timeout=60)  # returns once all processes that write to this pipe have ended
    finally:
        for child in children:  # if the test fails
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def test_a_child_whose_parent_has_ended_does_not_start():
    command = [sys.executable, "-m", "ragkv.serving.child", "0", "echo", "started"]
    assert subprocess.run(command, capture_output=True, check=True, text=True, cwd=ROOT).stdout == ""
    command[3] = str(os.getpid())
    assert subprocess.run(command, capture_output=True, check=True, text=True, cwd=ROOT).stdout == "started\n"
