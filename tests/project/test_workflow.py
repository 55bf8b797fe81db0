"""`make reproduce`'s DAG, headless: it runs to the report, does nothing twice, and stops with the notebook's error."""

import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from helpers import ROOT

PROFILE = {
    "models": ["tiny-llama", "tiny-qwen"],
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


def run(root, parameters, *options, profile="p", shards=1):
    (root / "params" / f"{profile}.yaml").write_text(yaml.safe_dump(parameters))
    command = [sys.executable, "-m", "snakemake", "-s", "workflow/Snakefile", "--cores", "2", *options]
    command += ["--config", f"profile={profile}", f"shards={shards}"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def test_the_report_is_made_once_and_again_when_parameters_change(project):
    first = run(project, PROFILE)
    assert first.returncode == 0, first.stderr[-3000:]
    page = (project / "outputs/p/report.html").read_text()
    for model in PROFILE["models"]:
        assert f'<h2 id="{model}">' in page
        for benchmark in PROFILE["benchmarks"]:
            assert (project / f"outputs/p/report/{model}-{benchmark}.png").stat().st_size > 5000
            assert (project / f"outputs/p/report/{model}-{benchmark}.pdf").read_bytes().startswith(b"%PDF")
            assert "full_reuse" in (project / f"outputs/p/report/{model}-{benchmark}-scores.csv").read_text()
    assert (project / "outputs/p/tiny-llama/notebooks/05_ruler.ipynb").exists()
    assert 'href="p/report.html"' in (project / "outputs/index.html").read_text()

    assert "Nothing to be done" in run(project, PROFILE).stderr
    methods = PROFILE | {"methods": PROFILE["methods"][:2]}
    planned = run(project, methods, "--dry-run").stdout
    assert re.search(r"^ruler +2$", planned, re.M)  # both models'
    assert not re.search(r"^chunking", planned, re.M)

    failed = run(project, PROFILE | {"models": ["no-such-model"]})
    assert failed.returncode != 0
    assert "none of the embedded ones (tiny-llama, tiny-mistral, tiny-qwen)" in failed.stderr + failed.stdout


def test_shards_merge_to_the_table_of_one_run(project):
    """After the test above: what it made in one run each, made in two shards by a profile of its own."""
    one = PROFILE | {"models": ["tiny-llama"], "benchmarks": {"ruler": PROFILE["benchmarks"]["ruler"]}}
    rows = project / "outputs/q/tiny-llama/ruler/vt_1.parquet"
    done = run(project, one, rows, profile="q", shards=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^ruler_shard +2$", done.stdout + done.stderr, re.M)
    times = ["ttft", "tpot", "load", "select"]
    tables = (project / f"outputs/{profile}/tiny-llama/ruler/vt_1.parquet" for profile in "pq")
    whole, sharded = (pd.read_parquet(path).drop(columns=times) for path in tables)
    pd.testing.assert_frame_equal(sharded, whole)
    found = json.loads((project / "outputs/q/tiny-llama/precompute.json").read_text())
    assert found["written"] == found["segments"] == len(list((project / "outputs/q/store").glob("*/*.safetensors")))
    assert not list((project / "outputs/q").glob("**/*-of-2.json*"))
    assert "Nothing to be done" in run(project, one, rows, profile="q", shards=2).stderr
