"""What becomes of the processes of `ragkv serve`, without vLLM."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from helpers import ROOT

# Starts a worker and a command in place of vLLM's server.
PARENT = """
import sys
from ragkv.serving.processes import WorkerProcess, run_server
from ragkv.serving.settings import Settings

settings = Settings.from_json(sys.argv[1])
worker = WorkerProcess(settings)
if "wait" in sys.argv:
    worker.wait_until_ready()
print(worker.process.pid, flush=True)
sys.exit(run_server([sys.executable, "-c", sys.argv[2]], settings))
"""
# Starts a process of its own, does nothing to end it, and prints the ids of both.
SERVER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_the_worker_and_all_of_the_servers_processes_end_with_their_parent(settings, number):
    command = [sys.executable, "-c", PARENT, settings.to_json(), SERVER]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    processes = [int(line) for line in (parent.stdout.readline() + parent.stdout.readline()).split()]
    assert len(processes) == 3
    try:
        parent.send_signal(number)
        parent.communicate(timeout=60)  # returns once all processes that can write to this pipe have ended
    finally:
        for process in processes:  # if the test fails
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def test_ctrl_c_ends_all_and_the_worker_is_not_started_again(settings):
    command = [sys.executable, "-c", PARENT, settings.to_json(), SERVER, "wait"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    parent = subprocess.Popen(command, text=True, cwd=ROOT, start_new_session=True, **pipes)
    parent.stdout.readline()
    parent.stdout.readline()
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    _, errors = parent.communicate(timeout=60)
    assert "started again" not in errors
    assert "KeyboardInterrupt" not in errors


def test_the_exit_code_is_the_commands():
    command = [sys.executable, "-m", "ragkv.serving.children", str(os.getpid()), sys.executable, "-c", "exit(7)"]
    assert subprocess.run(command, cwd=ROOT).returncode == 7


def test_a_command_whose_parent_has_ended_is_not_run():
    command = [sys.executable, "-m", "ragkv.serving.children", "0", "echo", "started"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "the parent process has ended\n")
