"""`make reproduce`'s graph, headless: it runs to the report, does nothing twice, stops with the notebook's error."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from helpers import ROOT

from ragkv.models.load import model_source
from ragkv.run import run_profile

TIMES = ["ttft", "tpot", "load", "select"]
PROFILE = {
    "models": ["tiny-llama"],
    "chunk_tokens": 64,
    "benchmarks": {
        "longbench": {"source": "tiny", "tasks": {"2wikimqa": {"prompts": 2, "length": 512}}},
        "needle": {"haystack": "tiny", "tasks": {"single": {"lengths": [128], "depths": [0, 100]}}},
        "ruler": {"source": "tiny", "tasks": {"vt_1": {"prompts": 2, "lengths": [256], "ratios": [0.15, 0.3]}}},
    },
    "methods": [{"selector": "full_prefill"}, {"selector": "full_reuse"}, {"selector": "a3"}],
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of what the workflow needs, with a profile of two prompts a task."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("workflow", "notebooks"):
        shutil.copytree(ROOT / folder, root / folder)
    (root / "params").mkdir()
    return root


SNAKEMAKE = ("-m", "snakemake", "-s", "workflow/Snakefile")
REPRODUCE = ("workflow/reproduce.py",)  # as `make reproduce` does


def run(root, parameters, *options, profile="p", shards=1, environment=None, program=SNAKEMAKE):
    (root / "params" / f"{profile}.yaml").write_text(yaml.safe_dump(parameters, sort_keys=False))
    command = [sys.executable, *program, "--cores", "2", *options]
    command += ["--config", f"profile={profile}", f"shards={shards}"]
    environment = os.environ | (environment or {})
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=environment)


def test_the_report_is_made_once_and_again_when_parameters_change(project):
    first = run(project, PROFILE, program=REPRODUCE)
    assert first.returncode == 0, first.stderr[-3000:]
    lines = first.stderr.splitlines()
    assert [line.split(" took ")[0] for line in lines][:2] == [
        "1 of 9  tiny-llama, environment",
        "2 of 9  tiny-llama, chunking",
    ]
    assert all(re.fullmatch(r"\d of 9  .* took .*; about .* left", line) for line in lines[:-1])
    assert re.fullmatch(r"9 of 9  report took \d+ seconds; all done", lines[-1])
    assert "Executing" in (project / "outputs/p/tiny-llama/notebooks/05_ruler.log").read_text()
    page = (project / "outputs/p/report.html").read_text()
    for model in PROFILE["models"]:
        assert f'<h2 id="{model}">' in page
        for benchmark in PROFILE["benchmarks"]:
            assert (project / f"outputs/p/report/{model}-{benchmark}.png").stat().st_size > 5000
            assert (project / f"outputs/p/report/{model}-{benchmark}.pdf").read_bytes().startswith(b"%PDF")
            assert "full_reuse" in (project / f"outputs/p/report/{model}-{benchmark}-times.csv").read_text()
    assert (project / "outputs/p/tiny-llama/notebooks/05_ruler.ipynb").exists()
    assert 'href="p/report.html"' in (project / "outputs/index.html").read_text()

    again = run(project, PROFILE, program=REPRODUCE)
    assert again.stderr == "nothing to be done: every step is finished\n"
    changed = {"methods": PROFILE["methods"][:2], "models": ["tiny-llama", "tiny-qwen"]}
    planned = run(project, PROFILE | changed, "--dry-run").stdout
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", planned, re.M))
    for benchmark in PROFILE["benchmarks"]:
        assert jobs[f"evaluate_{benchmark}"] == "2"  # for both models
    assert jobs["chunking"] == jobs["precompute"] == "1"  # for the new model
    assert jobs["report"] == "1"  # of both


def test_a_run_in_one_process_gives_the_same_tables(project, tmp_path):
    """After the test above: what it made, made again by `ragkv run`."""
    (tmp_path / "params").mkdir()
    (tmp_path / "params/p.yaml").write_text(yaml.safe_dump(PROFILE, sort_keys=False))
    run_profile("p", model="tiny-llama", root=tmp_path, say=lambda line: None)
    alone, notebooks = (root / "outputs/p/tiny-llama" for root in (tmp_path, project))
    tables = sorted(path.relative_to(alone) for path in alone.rglob("*.parquet"))
    assert len(tables) == 3
    for name in tables:
        ours, theirs = (pd.read_parquet(folder / name).drop(columns=TIMES) for folder in (alone, notebooks))
        pd.testing.assert_frame_equal(ours, theirs)
    for name in ("chunking.json", "tokens.json", "oracle.json"):
        assert (alone / name).read_bytes() == (notebooks / name).read_bytes()
    ours, theirs = (json.loads((folder / "precompute.json").read_text()) for folder in (alone, notebooks))
    assert ours["segments"] == ours["written"] == theirs["segments"]


def test_what_a_profile_says_never_runs_in_a_shell(tmp_path):
    """Folders, profiles and models with quotes, semicolons and braces in their names are names, and nothing else."""
    root = tmp_path / "Bob's {} $(touch pwned); touch pwned; echo '"
    profile = "it's `touch pwned` {}; touch pwned"
    model = "x' ; touch pwned ; echo '"
    for folder in ("workflow", "notebooks"):
        shutil.copytree(ROOT / folder, root / folder)
    (root / "params").mkdir()
    shutil.copytree(model_source("tiny-llama"), root / "models" / model)
    parameters = PROFILE | {"models": [f"models/{model}"], "benchmarks": {"ruler": PROFILE["benchmarks"]["ruler"]}}
    outputs = root / "outputs" / profile / model
    environment = outputs / "notebooks/00_environment.ipynb"  # its notebook takes a while, and is run as the others
    environment.parent.mkdir(parents=True)
    environment.write_text("{}")
    done = run(root, parameters, outputs / "chunking.json", profile=profile)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((outputs / "chunking.json").read_text())[0]["prompts"] == 2
    assert (outputs / "notebooks/01_chunking.ipynb").exists()
    assert not list(tmp_path.rglob("pwned"))

    # Through Slurm too: here with programs in place of Slurm's, of which sbatch refuses the job.
    programs = tmp_path / "bin"
    programs.mkdir()
    refuse = f"cat > '{tmp_path}/script'; exit 1"
    for name, answer in {
        "sbatch": refuse,
        "sacct": "echo mine",
        "sacctmgr": "echo mine",
        "sinfo": "echo 'mine*'",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{answer}\n")
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    executor = ["--workflow-profile", "workflow/profiles/slurm", "--retries", "0", "--slurm-status-command", "squeue"]
    done = run(root, parameters, outputs / "precompute.json", *executor, profile=profile, environment={"PATH": path})
    assert done.returncode != 0
    assert "SLURM sbatch failed" in done.stdout + done.stderr, done.stderr[-3000:]
    script = (tmp_path / "script").read_text()
    assert model in " ".join(shlex.split(script, comments=True))
    assert not list(tmp_path.rglob("pwned"))


def test_a_name_that_snakemake_cannot_have_is_refused(project):
    refused = run(project, PROFILE, "--dry-run", profile="a {model}")
    assert refused.returncode != 0
    assert "'a {model}' must not have a word in braces" in refused.stderr + refused.stdout
    refused = run(project, PROFILE | {"\x1b]0;title\x07": 1}, "--dry-run", program=REPRODUCE)
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: ") and r"\x1b]0;title\x07: there is no such parameter" in line


def test_shards_merge_to_the_table_of_one_run(project):
    """After the test above: what it made in one run each, made in two shards by a profile of its own."""
    one = PROFILE | {"models": ["tiny-llama"], "benchmarks": {"ruler": PROFILE["benchmarks"]["ruler"]}}
    rows = project / "outputs/q/tiny-llama/ruler/vt_1.parquet"
    done = run(project, one, rows, profile="q", shards=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^evaluate_ruler_shard +2$", done.stdout + done.stderr, re.M)
    tables = (project / f"outputs/{profile}/tiny-llama/ruler/vt_1.parquet" for profile in "pq")
    whole, sharded = (pd.read_parquet(path).drop(columns=TIMES) for path in tables)
    pd.testing.assert_frame_equal(sharded, whole)
    found = json.loads((project / "outputs/q/tiny-llama/precompute.json").read_text())
    assert found["written"] == found["segments"] == len(list((project / "outputs/q/store").glob("*/*.safetensors")))
    assert not list((project / "outputs/q").glob("**/*-of-2.json*"))
    assert "Nothing to be done" in run(project, one, rows, profile="q", shards=2).stderr
