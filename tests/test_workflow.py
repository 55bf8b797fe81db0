"""`make reproduce`'s DAG, headless: it runs to the report, does nothing twice, and stops with the notebook's error."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROFILE = {
    "models": ["tiny-llama"],
    "benchmark": "small",
    "chunk_tokens": 64,
    "max_new_tokens": 4,
    "tasks": {"needle": {"prompts": 2, "length": 160, "ratios": [0.15]}},
    "methods": [{"selector": "full_prefill"}, {"selector": "full_reuse"}, {"selector": "a3"}],
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of what the workflow needs, with a profile of two prompts."""
    root = tmp_path_factory.mktemp("project")
    for folder in ("workflow", "notebooks"):
        shutil.copytree(ROOT / folder, root / folder)
    (root / "params").mkdir()
    return root


def run(root, parameters, *options):
    (root / "params" / "p.yaml").write_text(yaml.safe_dump(parameters))
    command = [sys.executable, "-m", "snakemake", "-s", "workflow/Snakefile", "--cores", "2", "--config", "profile=p"]
    return subprocess.run([*command, *options], cwd=root, capture_output=True, text=True, check=False)


def test_the_report_is_made_once_and_again_when_parameters_change(project):
    first = run(project, PROFILE)
    assert first.returncode == 0, first.stderr[-3000:]
    page = (project / "outputs/p/report.html").read_text()
    assert "tiny-llama" in page
    assert (project / "outputs/p/report/tiny-llama-accuracy.png").stat().st_size > 5000
    assert "full_reuse" in (project / "outputs/p/report/tiny-llama-accuracy.csv").read_text()
    assert (project / "outputs/p/tiny-llama/small/notebooks/03_evaluation-needle.ipynb").exists()

    assert "Nothing to be done" in run(project, PROFILE).stderr
    changed = PROFILE | {"max_new_tokens": 3}
    planned = run(project, changed, "--dry-run").stdout
    assert "evaluation" in planned
    assert "chunking" not in planned

    failed = run(project, PROFILE | {"models": ["no-such-model"]})
    assert failed.returncode != 0
    assert "none of the embedded ones (tiny-llama, tiny-mistral, tiny-qwen)" in failed.stderr + failed.stdout
