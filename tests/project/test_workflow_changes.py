"""What `make reproduce` runs again: everything that a change, a fault or a killed run leaves unfinished, and no more.

Results are made in this process and then given to Snakemake as finished, so that no notebook has to run.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from helpers import ROOT, random_context

from ragkv.benchmarks.tiny import longbench_records
from ragkv.experiment.experiment import Experiment
from ragkv.models.fingerprint import fingerprint
from ragkv.models.load import load_model, model_source
from ragkv.results.files import write_json
from ragkv.run import run_profile

MODEL = "models/mine"
PROFILE = {
    "extends": "base",
    "models": [MODEL],
    "modules": ["plug.py"],
    "benchmarks": {
        "longbench": {"source": "data", "tasks": {"2wikimqa": {"prompts": 1, "max_new_tokens": 2}}},
        "needle": {
            "haystack": "hay",
            "tasks": {"single": {"lengths": [256], "depths": [0], "max_new_tokens": 2}},
        },
    },
    "methods": [
        {"selector": "full_prefill"},
        {"selector": "probe", "calibrated": True, "offline": {"context": "learned", "file": "context.safetensors"}},
    ],
}
STEPS = ("01_chunking", "02_precompute", "03_longbench", "04_needle", "06_selected_tokens", "09_frontier")
EVALUATIONS = {"evaluate_longbench", "evaluate_needle"}
AFTER = {"tokens", "frontier", "report", "all"}  # what is made from evaluations
EVERYTHING = {"chunking", "precompute"} | EVALUATIONS | AFTER


SNAKEMAKE = ("-m", "snakemake", "-s", "workflow/Snakefile")
REPRODUCE = ("workflow/reproduce.py",)  # as `make reproduce` does


def snakemake(root, *options, program=SNAKEMAKE):
    command = [sys.executable, *program, "--cores", "1", "--rerun-incomplete", *options]
    command += ["--rerun-triggers", "mtime", "params", "input", "--config", "profile=p"]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths}
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=environment)


def planned(root):
    """The rules of all jobs that would run, and what is said about them."""
    done = snakemake(root, "--dry-run")
    assert done.returncode == 0, done.stderr[-3000:]
    return set(re.findall(r"^(\w+) +\d+$", done.stdout, re.M)) - {"total"}, done.stderr


@pytest.fixture(scope="module")
def finished_project(tmp_path_factory):
    """A profile with files of every kind, run to its report."""
    root = tmp_path_factory.mktemp("finished")
    for folder in ("workflow", "notebooks"):
        shutil.copytree(ROOT / folder, root / folder)
    for folder in ("params/calibration", "data", "hay"):
        (root / folder).mkdir(parents=True)
    records = [json.dumps(record) + "\n" for record in longbench_records(1, 512, 0)]
    (root / "data/2wikimqa.jsonl").write_text("".join(records))
    (root / "hay/a.txt").write_text("The road was dry. Nobody came by. " * 50)
    (root / "plug.py").write_text("from plug_words import WORDS\n")
    (root / "plug_words.py").write_text("WORDS = 1\n")
    (root / "params/base.yaml").write_text("chunk_tokens: 64\n")
    (root / "params/p.yaml").write_text(yaml.safe_dump(PROFILE))
    shutil.copytree(model_source("tiny-llama"), root / MODEL)
    model, _ = load_model(root / MODEL, device="cpu")
    random_context(model).save(root / "context.safetensors")
    calibration = {"options": {"first_layer": 1}, "provenance": {"model": fingerprint(model)}}
    write_json(root / "params/calibration/mine.json", calibration)
    sys.path.insert(0, str(root))
    try:
        run_profile("p", root=root, say=lambda line: None)
    finally:
        sys.path.remove(str(root))
        sys.modules.pop("plug_words", None)
    notebooks = Experiment.load("p", root=root).outputs.folder / "notebooks"
    notebooks.mkdir()
    (notebooks / "00_environment.ipynb").touch()
    for step in STEPS:
        (notebooks / f"{step}.done").touch()
    (root / "outputs/p/notebooks").mkdir()
    (root / "outputs/p/notebooks/07_report.done").touch()
    given = snakemake(root, "--touch", "--forceall")
    assert given.returncode == 0, given.stderr[-3000:]
    assert planned(root)[0] == set()
    return root


@pytest.fixture
def project(finished_project):
    """It, and afterwards everything as it was, with its times."""
    copy = finished_project.with_name("copy")
    shutil.copytree(finished_project, copy)
    yield finished_project
    shutil.rmtree(finished_project)
    copy.rename(finished_project)


@pytest.mark.parametrize(
    ("file", "rules"),
    [
        ("data/2wikimqa.jsonl", EVERYTHING),
        ("plug_words.py", EVERYTHING),
        (f"{MODEL}/model.safetensors", EVERYTHING | {"environment"}),
        ("params/calibration/mine.json", EVALUATIONS | AFTER),
        ("context.safetensors", EVERYTHING - {"chunking"}),
    ],
)
def test_a_file_that_changes_in_place_is_read_again(project, file, rules):
    """Also if it has its old time and size, as after `cp -p`."""
    path = project / file
    about = path.stat()
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    later = about.st_mtime_ns + (file.endswith("safetensors"))  # large files: by time
    os.utime(path, ns=(about.st_atime_ns, later))
    assert planned(project)[0] == rules


def test_a_parameter_of_an_extended_profile_runs_what_depends_on_it(project):
    (project / "params/base.yaml").write_text("chunk_tokens: 32\n")
    assert planned(project)[0] == EVERYTHING


@pytest.mark.parametrize("damage", ["a flipped bit", "cut", "missing"])
def test_results_that_are_damaged_or_missing_are_named_and_made_again(project, damage):
    """Of three rules that do not depend on each other."""
    files = ["needle/single.parquet", "tokens.json", "oracle.json"]
    if damage == "cut":
        files = ["longbench/2wikimqa.json", "needle/single.json"]
    for path in (project / "outputs/p/mine" / file for file in files):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.unlink() if damage == "missing" else path.write_bytes(content[:-30] if damage == "cut" else content)
    rules, said = planned(project)
    assert rules - {"report", "all", "tokens", "frontier"} == (EVALUATIONS if damage == "cut" else {"evaluate_needle"})
    assert rules >= AFTER
    for file in files if damage != "missing" else []:
        assert f"outputs/p/mine/{file} is damaged: it does not match its checksum" in said


@pytest.mark.parametrize(
    ("file", "content", "rule"),
    [
        ("longbench/2wikimqa.prompts.json", "{}", "chunking"),
        ("precompute.json", "{}", "precompute"),
        ("notebooks/04_needle.ipynb", '"StoreError: 3 of 4 segments are not in the store"', "precompute"),  # it failed
    ],
)
def test_what_evaluations_need_is_made_again_too(project, file, content, rule):
    (project / "outputs/p/mine" / file).write_text(content)
    assert planned(project)[0] >= {rule} | EVALUATIONS | AFTER


def test_results_that_another_run_made_with_other_parameters_are_made_again(project):
    """`ragkv run` with other parameters in between: Snakemake alone sees files that are newer than before."""
    profile = project / "params/p.yaml"
    profile.write_text(yaml.safe_dump(PROFILE | {"methods": PROFILE["methods"][:1]}))
    run_profile("p", root=project, say=lambda line: None)
    profile.write_text(yaml.safe_dump(PROFILE))
    assert planned(project)[0] >= EVALUATIONS | {"report"}


def test_a_job_that_fails_keeps_the_table_and_is_run_again(project):
    """A notebook that fails behind its evaluation. The old table and the old report stay until there are new ones."""
    table = project / "outputs/p/mine/needle/single.parquet"
    report = project / "outputs/p/report.html"
    before = table.read_bytes(), report.read_bytes()
    notebook = project / "notebooks/04_needle.ipynb"
    content = json.loads(notebook.read_text())
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    code[1]["source"] = "raise MemoryError('out of memory')"
    notebook.write_text(json.dumps(content))
    methods = [*PROFILE["methods"], {"selector": "epic"}]
    (project / "params/p.yaml").write_text(yaml.safe_dump(PROFILE | {"methods": methods}))
    for _ in range(2):  # never "Nothing to be done"
        notebooks = project / "outputs/p/mine/notebooks"
        failed = snakemake(project, str(notebooks / "04_needle.done"), program=REPRODUCE)
        assert failed.returncode != 0
        reason = "MemoryError: out of memory (all of it: "
        assert failed.stderr == f"failed: mine, evaluate_needle: {reason}{notebooks / '04_needle.log'})\n"
        assert (table.read_bytes(), report.read_bytes()) == before
        assert planned(project)[0] == EVALUATIONS | AFTER


def test_what_is_missing_is_said_before_anything_runs(project):
    benchmarks = {"needle": {"haystack": "no/such/folder", "tasks": {"a": {}}}}
    changed = {"models": ["path/to/your/model"], "benchmarks": benchmarks}
    (project / "params/p.yaml").write_text(yaml.safe_dump(PROFILE | changed))
    failed = snakemake(project, program=REPRODUCE)
    assert failed.returncode != 0
    (line,) = failed.stderr.splitlines()
    assert line.startswith("error: model 'path/to/your/model' could not be loaded: it is none of the embedded ones")
    assert f"there is no folder {project}/path/to/your/model" in line
    assert f"needle: there is no file or folder {project}/no/such/folder" in line
    assert "note: model 'path/to/your/model' could not be loaded" in planned(project)[1]


def test_a_killed_run_needs_no_unlocking(project):
    """The next one runs; while one is alive, another one says so."""
    (project / "params/p.yaml").write_text(yaml.safe_dump(PROFILE | {"chunk_tokens": 32}))
    command = [sys.executable, "-m", "snakemake", "-s", "workflow/Snakefile", "--cores", "1", "--config", "profile=p"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])}
    with (project / "log").open("w") as log:
        alive = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log, start_new_session=True)
    locks = project / ".snakemake/locks"
    try:
        deadline = time.monotonic() + 200
        while not (locks.is_dir() and any(locks.iterdir())):
            assert time.monotonic() < deadline
            assert alive.poll() is None, (project / "log").read_text()[-3000:]
            time.sleep(0.1)
        second = snakemake(project)
        assert second.returncode != 0
        assert f"the profile 'p' is being run by process {alive.pid} on " in second.stderr
    finally:
        os.killpg(alive.pid, signal.SIGKILL)
        alive.wait()
    assert any(locks.iterdir())
    assert "report" in planned(project)[0]
    assert not locks.exists() or not any(locks.iterdir())
