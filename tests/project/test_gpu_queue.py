"""Each command has a GPU to itself: with a list of GPUs that are not there."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from helpers import ROOT

SCRIPT = ROOT / "workflow" / "gpu.py"
LOG = """
import os, sys, time
gpu, start = os.environ.get("CUDA_VISIBLE_DEVICES"), time.monotonic()
time.sleep(float(sys.argv[2]))
with open(sys.argv[1], "a") as file:
    file.write(f"{gpu} {start} {time.monotonic()}\\n")
"""


@pytest.fixture
def machine(tmp_path):
    """An environment in which nvidia-smi shows two GPUs, and where locks are its own."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-aa'\necho '1, GPU-bb'\n")
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return environment


def start(environment, log, seconds=0.0):
    command = [sys.executable, SCRIPT, sys.executable, "-c", LOG, log, str(seconds)]
    return subprocess.Popen(command, env=environment)


def read(log):
    return [(gpu, float(begin), float(end)) for gpu, begin, end in map(str.split, log.read_text().splitlines())]


def test_no_two_commands_share_a_gpu(machine, tmp_path):
    log = tmp_path / "log"
    running = [start(machine, log, 0.3) for _ in range(6)]
    assert [process.wait() for process in running] == [0] * 6
    runs = read(log)
    assert {gpu for gpu, *_ in runs} == {"GPU-aa", "GPU-bb"}
    for name in ("GPU-aa", "GPU-bb"):
        times = sorted(run[1:] for run in runs if run[0] == name)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(times))


def test_a_killed_command_gives_its_gpu_back(machine, tmp_path):
    machine["CUDA_VISIBLE_DEVICES"] = "1"
    killed, log = start(machine, tmp_path / "log", 600), tmp_path / "log"
    lock = tmp_path / f"ragkv-gpus-{os.getuid()}" / "GPU-bb"
    while not lock.exists():
        time.sleep(0.02)
    waiting = start(machine, log)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=1)
    killed.send_signal(signal.SIGKILL)
    assert waiting.wait() == 0
    assert [gpu for gpu, *_ in read(log)] == ["GPU-bb"]  # the one of the two that was allowed
    killed.wait()


def test_without_a_gpu_the_command_runs_as_it_is(machine, tmp_path):
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    assert start(machine, tmp_path / "log").wait() == 0
    assert [gpu for gpu, *_ in read(tmp_path / "log")] == ["None"]
    failing = [sys.executable, SCRIPT, sys.executable, "-c", "raise SystemExit(3)"]
    assert subprocess.run(failing, env=machine, check=False).returncode == 3
