"""`make setup` picks a PyTorch that fits the machine, and `make test`, `lint` and `docs` install what they need.

The Makefile runs with a pip that only writes down what it is asked for, and with an nvidia-smi that says what a test
wants.
"""

import os
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT

PIP = """
import os, sys
from pathlib import Path

with open(os.environ["PIP_LOG"], "a") as log:
    print(*sys.argv[1:], file=log)
if sys.argv[1] == "index":
    print("torch (9.9.0)\\nAvailable versions: " + os.environ["TORCH_VERSIONS"])
if os.environ.get("NO_CPU_BUILD") and "+cpu" in " ".join(sys.argv):
    sys.exit("ERROR: the connection broke")
"""
# The real one puts pip into the environment, which hides the stub.
VENV = """
import subprocess, sys
subprocess.run([sys.executable, "-I", "-m", "venv", "--without-pip", sys.argv[1]], check=True)
"""
REACHED = "9.9.0+cpu, 9.9.0, 9.8.0+cpu, 9.8.0"
UNREACHABLE = "9.9.0, 9.8.0"
INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu --retries 1"
ONE_GPU = "GPU 0: NVIDIA H200 (UUID: GPU-1)"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch comes without CUDA")


class Machine:
    """A copy of what `make setup` reads, on a machine where no package is ever installed."""

    def __init__(self, folder):
        self.folder = folder
        self.project = folder / "project"
        (self.project / "workflow").mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", "workflow/pytorch.py"):
            shutil.copy(ROOT / name, self.project / name)
        (folder / "stubs").mkdir()
        (folder / "stubs/pip.py").write_text(PIP)
        (folder / "stubs/venv.py").write_text(VENV)
        self.log = folder / "pip.log"

    def make(self, *words, gpus="No devices found.", versions=REACHED, **variables):
        """Run make: what it prints, and what pip was asked for since the last time."""
        program = self.folder / "stubs/nvidia-smi"
        program.write_text(f"#!/bin/sh\necho '{gpus}'\n")
        program.chmod(0o755)
        environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "CPU", "TORCH")}
        environment |= {"PATH": f"{self.folder / 'stubs'}:{os.environ['PATH']}", "PYTHONPATH": str(program.parent)}
        environment |= {"PIP_LOG": str(self.log), "TORCH_VERSIONS": versions, **variables}
        command = ["make", f"PYTHON={sys.executable}", *words]
        self.log.write_text("")
        done = subprocess.run(command, cwd=self.project, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout, self.log.read_text().splitlines()

    def torch(self, *words, **options):
        """What `make setup` says about PyTorch, and the requirements that it tries to install."""
        said, asked = self.make("setup", *words, **options)
        tried = [line.removeprefix("install --quiet ") for line in asked if "torch" in line and "index " not in line]
        return [line for line in said.splitlines() if line.startswith(("PyTorch", "No PyTorch"))], tried


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@LINUX
@pytest.mark.parametrize(
    ("words", "gpus", "reason"),
    [([], "No devices found.", "nvidia-smi finds no GPU here"), (["CPU=1"], ONE_GPU, "CPU=1")],
)
def test_a_machine_without_a_gpu_gets_the_newest_build_without_cuda(machine, words, gpus, reason):
    said, tried = machine.torch(*words, gpus=gpus)
    assert tried == [f"--no-deps torch==9.9.0+cpu {INDEX}"]
    assert said == [f"PyTorch 9.9.0+cpu, without CUDA's libraries: {reason}. For a GPU: make setup TORCH=torch"]


@LINUX
def test_an_index_that_cannot_be_reached_is_said_and_the_default_is_installed(machine):
    said, tried = machine.torch(versions=UNREACHABLE)
    assert tried == ["torch"]
    (line,) = said
    assert "cannot be reached" in line
    assert "about 3 GB instead of 0.2 GB" in line


@LINUX
def test_a_build_that_cannot_be_installed_is_said_and_the_default_is_installed(machine):
    said, tried = machine.torch(NO_CPU_BUILD="1")
    assert tried == [f"--no-deps torch==9.9.0+cpu {INDEX}", "torch"]
    (line,) = said
    assert "PyTorch 9.9.0+cpu could not be installed" in line
    assert "3 GB" in line


@pytest.mark.parametrize(
    ("words", "gpus", "requirement"),
    [
        ([], ONE_GPU, "torch"),
        (["TORCH=torch==9.8.0"], "No devices found.", "torch==9.8.0"),
        (["TORCH=torch --pre", "CPU=1"], ONE_GPU, "torch --pre"),
    ],
)
def test_a_gpu_or_a_requirement_leaves_the_choice_to_pip(machine, words, gpus, requirement):
    assert machine.torch(*words, gpus=gpus) == ([], [requirement])


def test_a_pytorch_that_is_installed_stays(machine):
    machine.make("setup")
    (packages,) = (machine.project / ".venv").glob("lib/python*/site-packages")
    (packages / "torch").mkdir()
    (packages / "torch/__init__.py").touch()
    (machine.project / ".venv/.setup").unlink()
    assert machine.torch() == ([], [])
    assert machine.torch("TORCH=torch==9.8.0") == ([], [])  # nothing changed: nothing to do
    (machine.project / ".venv/.setup").unlink()
    assert machine.torch("TORCH=torch==9.8.0") == ([], ["torch==9.8.0"])


def test_targets_install_once_what_they_need_on_top_of_setup(machine):
    setup = "install --quiet -e .[hub,notebooks,slurm]"
    assert machine.make("setup")[1][-1] == setup
    assert machine.make("setup")[1] == []
    for target in ("test", "lint", "docs"):
        assert machine.make(f".venv/.{target}")[1] == [f"install --quiet -e .[{target}]"]
        assert machine.make(f".venv/.{target}")[1] == []
    later = (machine.project / ".venv/.docs").stat().st_mtime + 10
    os.utime(machine.project / "pyproject.toml", (later, later))
    asked = machine.make(".venv/.lint")[1]
    assert asked[-2:] == [setup, "install --quiet -e .[lint]"]
