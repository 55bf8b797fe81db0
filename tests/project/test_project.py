"""The repository itself: notebooks and profiles are in order, and documented commands exist and run."""

import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT

import ragkv
from ragkv.benchmarks import BENCHMARKS
from ragkv.eviction import EVICTIONS
from ragkv.experiment.experiment import Experiment
from ragkv.selectors import SELECTORS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


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


def test_readme_begins_with_few_lines_of_code():
    library = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert len([line for line in library.splitlines() if line.strip()]) <= 15


def documented():
    """The README and the pages that it leads to."""
    return "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


def test_documentation_names_every_benchmark_notebook_selector_and_profile():
    text = documented()
    notebooks = [path.stem for path in NOTEBOOKS]
    profiles = {path.stem for path in (ROOT / "params").glob("*.yaml")} - {"paper", "smoke"}
    assert [name for name in [*BENCHMARKS, *SELECTORS, *EVICTIONS, *notebooks] if f"`{name}`" not in text] == []
    assert [name for name in profiles if name not in text] == []


COMMAND = r"((?:make|ragkv|python -m) [a-z][\w.-]*(?: [^`\n#|\\]+)?)"
BLOCKS = re.findall(r"^```bash\n(.*?)^```", documented(), re.S | re.M)
FOUND = re.findall(f"`{COMMAND}", documented()) + re.findall(f"^{COMMAND}", "\n".join(BLOCKS), re.M)
COMMANDS = sorted({re.sub("^ragkv ", "python -m ragkv ", text).strip() for text in FOUND})
PROGRAM = re.compile(r"python -m (ragkv(?: [a-z]+(?:-[a-z]+)*\b(?!\S))+|\S+)")
PROGRAMS = sorted({PROGRAM.match(text)[1] for text in COMMANDS if text.startswith("python")})
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def make(*words):
    """What `make` prints; it takes what is installed as it is."""
    as_installed = [word for target in ("setup", "test", "lint", "docs") for word in ("-o", f".venv/.{target}")]
    command = ["make", *as_installed, *words]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs ``python -m program words``, but in this process: importing PyTorch anew takes longer than most programs."""
    monkeypatch.setenv("COLUMNS", "200")  # an option on one line
    monkeypatch.chdir(ROOT)

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *words])
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)  # imported by other tests
                runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, capsys.readouterr().err
        return capsys.readouterr().out

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize("text", [text for text in COMMANDS if text.startswith("make")])
def test_documented_make_command_is_there(text):
    words = text.split()
    for word in words:
        if word.startswith("PROFILE=") and "<" not in word and word != "PROFILE=mine":
            assert (ROOT / f"params/{word.removeprefix('PROFILE=')}.yaml").exists()
    assert make("-n", *(word for word in words[1:] if "<" not in word))


@pytest.mark.parametrize("name", PROGRAMS)
def test_documented_program_takes_its_options(program, name):
    said = program(*name.split(), "--help")
    called = [text for text in COMMANDS if (found := PROGRAM.match(text)) and found[1] == name]
    options = {word for text in called for word in text.split() if word.startswith("--")}
    assert called and all(option in said for option in options)


QUICK = {  # a documented command, and one like it that takes seconds
    "make help": "make help",
    "make dry-run": "make dry-run PROFILE=smoke",
    "python -m ragkv plan": "python -m ragkv plan llama-3-8b --tflops 400 --bandwidth 2.5",
    "python -m ragkv bench": "python -m ragkv bench --tokens 128 --repeats 2 --out {folder}/bench.json",
    "python -m ragkv calibrate": "python -m ragkv calibrate tiny-llama --prompts 1 --length 512 --out {folder}/c.json",
    "python -m ragkv tiny": "python -m ragkv tiny --steps 1 --tokens 1024 --out {folder}/tiny",
}


@pytest.mark.parametrize("start", QUICK)
def test_documented_command_runs(program, start, tmp_path):
    assert any(text.startswith(start) for text in COMMANDS)
    words = QUICK[start].format(folder=tmp_path).split()
    if words[0] == "make":
        make(*words[1:])
    else:
        program(*words[2:])
    assert list(tmp_path.iterdir()) or "{folder}" not in QUICK[start]


def test_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(citation)
    assert (citation["version"], citation["license"]) == (ragkv.__version__, PROJECT["license"])
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert all({"family-names", "given-names"} == set(author) for author in paper["authors"])
    assert paper["identifiers"][0]["value"] == "arXiv:2511.17560"
    assert paper["url"].endswith("2511.17560")
    assert f"## {ragkv.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_continuous_integration_calls_the_targets_of_the_makefile():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    called = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert {"make test", "make lint", "make docs", "make test TORCH=torch"} <= set(called)
    assert all(make("-n", *text.split()[1:]) for text in called)


def test_embedded_weights_are_small_and_bf16():
    from safetensors import safe_open

    for path in (ROOT / "ragkv/tiny/weights").glob("*/model.safetensors"):
        assert path.stat().st_size <= 16e6
        with safe_open(path, "pt") as weights:
            assert all(weights.get_tensor(name).dtype == torch.bfloat16 for name in weights.keys())  # noqa: SIM118
