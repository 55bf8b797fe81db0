"""The repository itself: its environments agree, its notebooks are in order, its README's code runs."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

from ragkv.benchmarks import BENCHMARKS
from ragkv.experiment import Experiment
from ragkv.selectors import SELECTORS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_conda_environment_installs_the_same():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert f"python{PROJECT['requires-python']}" in conda
    (requirement,) = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    extras = re.fullmatch(r"-e \.\[(.*)\]", requirement)[1].split(",")
    assert set(extras) == set(PROJECT["optional-dependencies"]) - {"gpu", "slurm"}
    installed = re.search(r"-e '(\..*)'", (ROOT / "Makefile").read_text())[1]
    assert f"-e {installed}" == requirement


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_in_order(path):
    notebook = json.loads(path.read_text())
    tags = [cell["metadata"].get("tags", []) for cell in notebook["cells"]]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert sum("parameters" in t for t in tags) == 1
    checked = [cell for cell, t in zip(notebook["cells"], tags, strict=True) if "nbval-check-output" in t]
    assert checked
    assert all(cell["execution_count"] and cell["outputs"] for cell in checked), "run `make notebooks`"
    assert notebook["cells"][0]["cell_type"] == "markdown"
    assert str(ROOT) not in path.read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_profiles_are_valid(path):
    assert Experiment.load(path.stem, root=ROOT).tasks


def test_readme_code_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    library, *rest = blocks
    assert len([line for line in library.splitlines() if line.strip()]) <= 15
    script = tmp_path / "readme.py"
    script.write_text(f"{chr(10).join([library, *rest])}\n")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("414 ")


def test_readme_profile_is_valid(tmp_path):
    (profile,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "params").mkdir()
    (tmp_path / "params/mine.yaml").write_text(profile)
    assert Experiment.load("mine", root=tmp_path).tasks == [("longbench", "hotpotqa")]


def test_readme_names_every_benchmark_notebook_and_profile():
    text = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in text for name in BENCHMARKS)
    assert all(f"`{path.stem}`" in text for path in NOTEBOOKS)
    profiles = {path.stem for path in (ROOT / "params").glob("*.yaml")} - {
        "frontier",
        "frontier-long",
        "paper",
        "smoke",
    }
    assert all(name in text for name in profiles)


def test_readme_names_every_selector():
    text = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in text for name in SELECTORS)


def test_readme_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)", (ROOT / "README.md").read_text())) <= targets


def test_embedded_weights_are_small_and_bf16():
    from safetensors import safe_open

    for path in (ROOT / "ragkv/tiny/weights").glob("*/model.safetensors"):
        assert path.stat().st_size <= 16e6
        with safe_open(path, "pt") as weights:
            assert all(weights.get_tensor(name).dtype == torch.bfloat16 for name in weights.keys())  # noqa: SIM118
