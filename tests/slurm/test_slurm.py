"""`make reproduce` through Slurm, started here on loopback; a job is killed on the way and finished by the retry."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
CONF = Path("/etc/slurm/slurm.conf")  # start.sh puts a link there, and never replaces a file
MISSING = [program for program in ("munged", "slurmctld", "slurmd") if shutil.which(program, path=PATH) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here: apt-get install slurm-wlm munge"),
    pytest.mark.skipif(CONF.is_file() and not CONF.is_symlink(), reason=f"there is a Slurm here already: {CONF}"),
    pytest.mark.skipif(os.getuid() != 0, reason="tests/slurm/start.sh has to be run by root"),
]
OPTIONS = (
    "--slurm-status-command squeue --slurm-init-seconds-before-status-checks 2 "
    "--default-resources mem_mb=1000 runtime=30"
)


@pytest.fixture
def slurm(tmp_path):
    """The environment of a running Slurm."""
    folder = tmp_path / "slurm"
    subprocess.run([ROOT / "tests/slurm/start.sh", folder], check=True)
    path = f"{Path(sys.executable).parent}:{PATH}"
    yield os.environ | {"PATH": path}
    subprocess.run([ROOT / "tests/slurm/stop.sh", folder], check=True)


@pytest.fixture
def project(tmp_path):
    """A copy of what `make reproduce` needs, as if it were installed already."""
    root = tmp_path / "project"
    for folder in ("workflow", "notebooks", "params"):
        shutil.copytree(ROOT / folder, root / folder)
    for file in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / file, root)
    (root / ".venv").mkdir()
    (root / ".venv/.setup").touch()
    return root


def running(environment, rule):
    """The ids of that rule's jobs that run now."""
    command = ["squeue", "--noheader", "--states=RUNNING", "--format=%i %k"]
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines() if rule in line]


def test_a_job_that_is_killed_is_finished_by_the_retry(slurm, project):
    command = ["make", "reproduce", "PROFILE=smoke", "EXECUTOR=slurm", "SHARDS=2", f"OPTIONS={OPTIONS}"]
    said, killed = project / "log", []
    with said.open("w") as log, subprocess.Popen(command, cwd=project, env=slurm, stdout=log, stderr=log) as run:
        while run.poll() is None:
            begun = sorted(project.glob("outputs/smoke/*/ruler/*.partial.*-of-2-*.jsonl"))
            if begun and not killed:
                shard = begun[0].suffixes[-2].removeprefix(".").rpartition("-")[0]  # it has answered a prompt
                killed = running(slurm, f"ruler_shard_wildcards_tiny-llama_{shard}")
                subprocess.run(["scancel", "--signal=KILL", "--full", *killed], env=slurm, check=True)
            time.sleep(0.1)
    assert run.returncode == 0, said.read_text()[-3000:]
    assert len(killed) == 1
    state = subprocess.run(["scontrol", "show", "job", *killed], env=slurm, capture_output=True, text=True, check=True)
    assert "JobState=FAILED" in state.stdout or "JobState=CANCELLED" in state.stdout
    assert said.read_text().count("Trying to restart job") == 1

    assert "smoke" in (project / "outputs/smoke/report.html").read_text()
    folder = project / "outputs/smoke/tiny-llama"
    for benchmark, task in (("ruler", "vt_3"), ("longbench", "2wikimqa"), ("needle", "single")):
        asked = json.loads((folder / benchmark / f"{task}.prompts.json").read_text())["items"]
        rows = pd.read_parquet(folder / benchmark / f"{task}.parquet")
        assert rows["prompt"].unique().tolist() == [item["id"] for item in asked]
        assert not rows.duplicated(["prompt", "method", "ratio"]).any()
    assert not list(project.glob("outputs/**/*.partial*"))
