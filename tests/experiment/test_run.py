"""`ragkv run`: a profile in one process, the same as step by step; and benchmarks of the user's own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers import ROOT
from profiles import PROFILE, without_times, write_profile

from ragkv.benchmarks import BENCHMARKS
from ragkv.experiment import prompt_loop
from ragkv.experiment.evaluation import evaluate_tasks
from ragkv.experiment.experiment import Experiment
from ragkv.experiment.finished import unfinished
from ragkv.experiment.inspection import look_at
from ragkv.experiment.modules import import_modules
from ragkv.experiment.oracle import write_oracle
from ragkv.experiment.steps import ORACLE_PROMPTS, CloseUp, close_up, join_precompute, precompute_step
from ragkv.run import run_profile

OWN = Path(__file__).parents[1] / "own_benchmark.py"
LOOKUP = {"lookup": {"tasks": {"a": {"prompts": 4, "ratios": [0.2, 0.5]}, "b": {"prompts": 2}}}}


@pytest.fixture(autouse=True)
def _registered_benchmarks_are_restored():
    before = dict(BENCHMARKS)
    yield
    BENCHMARKS.clear()
    BENCHMARKS.update(before)


def steps_of_the_notebooks(experiment, tiny):
    """What notebooks 01 to 06 and 09 call."""
    model, tokenizer = tiny
    experiment.chunk(tokenizer)
    precompute_step(experiment, model)
    for benchmark in experiment.profile.benchmarks:
        evaluate_tasks(experiment, benchmark, model, tokenizer, progress=False)
    prompt = close_up(experiment)
    look_at(experiment, *prompt, model)
    write_oracle(experiment, prompt.benchmark, prompt.task, model, ORACLE_PROMPTS)


def json_without_times(path):
    content = json.loads(path.read_text())
    if path.name == "precompute.json":
        content.pop("seconds")
    for row in content.get("summary", []) if isinstance(content, dict) else []:
        row.pop("ttft"), row.pop("tpot")
    return content


def results_in(folder):
    """The files of results, without their checksums and rows so far."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".json", ".parquet"))


def test_a_run_gives_the_tables_of_the_notebooks(tmp_path, tiny):
    one, other = tmp_path / "one", tmp_path / "other"
    benchmarks = PROFILE["benchmarks"] | {
        "needle": {"haystack": "tiny", "tasks": {"single": {"lengths": [128], "depths": [0, 100]}}}
    }
    for root in (one, other):
        root.mkdir()
        experiment = write_profile(root, benchmarks=benchmarks)
    said = []
    page = run_profile("p", root=one, say=said.append)
    steps_of_the_notebooks(experiment, tiny)
    folder = one / "outputs/p/tiny-llama"
    made = results_in(folder)
    assert made == results_in(experiment.outputs.folder)
    for name in made:
        if name.suffix == ".parquet":
            tables = (pd.read_parquet(root / name) for root in (folder, experiment.outputs.folder))
            pd.testing.assert_frame_equal(*map(without_times, tables))
        else:
            assert json_without_times(folder / name) == json_without_times(experiment.outputs.folder / name)
    assert page.read_text().count("<h3") > 3
    assert (one / "outputs/index.html").exists()
    steps = ["chunk", "precompute", "needle, single", "ruler, vt_1", "selected tokens", "oracle"]
    assert [line.split(": ")[1] for line in said[:-1]] == steps
    assert said[-1].startswith(f"report: {page}")


def test_a_second_run_computes_nothing(tmp_path, monkeypatch):
    write_profile(tmp_path)
    run_profile("p", root=tmp_path, say=lambda line: None)
    folder = tmp_path / "outputs/p/tiny-llama"
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(prompt_loop, "fused_prefill", None)
    for name in ("look_at", "write_oracle"):
        monkeypatch.setattr(f"ragkv.run.{name}", None)
    said = []
    run_profile("p", root=tmp_path, say=said.append)
    assert any("0 computed now" in line for line in said)
    assert before == {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()
    }


def test_other_parameters_run_again(tmp_path):
    write_profile(tmp_path)
    run_profile("p", root=tmp_path, say=lambda line: None)
    tokens = json.loads((tmp_path / "outputs/p/tiny-llama/tokens.json").read_text())
    assert set(tokens["selected"]) == {"a3"}  # at the ratio of 0.1, the nearest to 0.15
    assert tokens["ratio"] == 0.1
    methods = [*PROFILE["methods"], {"selector": "epic"}]
    experiment = write_profile(tmp_path, methods=methods)
    run_profile("p", root=tmp_path, say=lambda line: None)
    assert set(experiment.rows("ruler", "vt_1")["method"]) == {"full_prefill", "full_reuse", "a3", "epic"}
    tokens = json.loads(experiment.outputs.tokens.read_text())
    assert set(tokens["selected"]) == {"a3", "epic"}
    assert {row["method"] for row in json.loads(experiment.outputs.oracle.read_text())["overlap"]} == {"a3", "epic"}


def test_one_model_of_several_has_no_report_yet(tmp_path):
    write_profile(tmp_path, models=["tiny-llama", "tiny-qwen"])
    said = []
    assert run_profile("p", model="tiny-qwen", root=tmp_path, say=said.append) is None
    assert said[-1] == "report: not written, it needs results of tiny-llama too"
    llama, qwen = Experiment.load_all("p", root=tmp_path)
    assert unfinished(qwen) == {}
    assert llama.outputs.tokens in unfinished(llama)
    assert run_profile("p", model="tiny-llama", root=tmp_path, say=said.append).exists()
    assert not [line for line in said if line.startswith("tiny-qwen") and "tiny-llama" in line]


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ({"vt_1": {"prompts": 9, "ratios": [0.2]}, "vt_2": {"prompts": 1, "ratios": [0.1, 0.5]}}, ("vt_2", 0.1)),
        ({"vt_1": {"prompts": 3}, "vt_2": {"prompts": 4}}, ("vt_2", 0.15)),
        ({"vt_1": {"prompts": 3, "ratios": [0.5, 0.16]}, "vt_2": {"prompts": 3, "ratios": [0.1, 1.0]}}, ("vt_1", 0.16)),
    ],
)
def test_the_task_with_most_ratios_then_most_prompts_is_looked_at(tmp_path, tasks, expected):
    experiment = write_profile(tmp_path, benchmarks={"ruler": {"source": "tiny", "tasks": tasks}})
    assert close_up(experiment) == CloseUp("ruler", expected[0], 0, expected[1])


def test_shards_of_precompute_are_joined(ready, tiny):
    for shard in ("0/2", "1/2"):
        precompute_step(ready, tiny[0], shard=shard)
    joined = join_precompute(ready, 2)
    whole = ready.precompute(tiny[0])
    assert (joined.segments, joined.shared) == (whole.segments, whole.shared)
    assert json.loads(ready.outputs.precompute.read_text())["segments"] == whole.segments


def own_project(root, **changes):
    """A project whose profile names a benchmark of its own in `modules`."""
    shutil.copy(OWN, root / "lookup.py")
    return write_profile(root, modules=["lookup.py"], benchmarks=LOOKUP, **changes)


def test_a_benchmark_of_ones_own_runs_up_to_the_report(tmp_path):
    experiment = own_project(tmp_path)
    page = run_profile("p", root=tmp_path, say=lambda line: None)
    rows = experiment.rows("lookup", "a")
    assert rows["size"].unique().tolist() == [4, 12]
    assert set(rows.columns) >= {"metric_exact", "score"}
    assert rows.loc[rows["method"] == "full_prefill", "score"].mean() == 1  # the model reads such statements
    scores = pd.read_csv(tmp_path / "outputs/p/report/tiny-llama-lookup-scores.csv")
    assert list(scores.columns) == ["method", "ratio", "recomputed", "a, 4", "a, 12", "b, 4", "b, 12", "average"]
    text = page.read_text()
    assert "tiny-llama: lookup" in text
    assert "all tasks and sizes" in text
    assert "lookup.py" in text  # among the parameters


def test_snakemake_finds_a_benchmark_of_ones_own(tmp_path):
    own_project(tmp_path)
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow")
    command = [sys.executable, "-m", "snakemake", "-s", "workflow/Snakefile", "--cores", "1", "--dry-run", "-p"]
    done = subprocess.run(
        [*command, "--config", "profile=p"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rule evaluate_lookup" in done.stdout
    assert "notebooks/03_benchmark.ipynb" in done.stdout
    assert "-r benchmark lookup" in done.stdout


def test_changed_code_of_a_module_is_another_evaluation(tmp_path, tiny):
    experiment = own_project(tmp_path)
    first = experiment.modules_code()
    assert first == experiment.modules_code() != ""
    (tmp_path / "lookup.py").write_text((tmp_path / "lookup.py").read_text() + "# changed\n")
    assert experiment.modules_code() != first
    assert write_profile(tmp_path).modules_code() == ""


def test_a_profile_without_modules_is_written_without_them(tmp_path):
    """So that what was recorded before is still the same."""
    assert "modules" not in write_profile(tmp_path).profile.model_dump_json()
    assert own_project(tmp_path).profile.model_dump()["modules"] == ["lookup.py"]


def test_modules_may_be_importable_names(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    shutil.copy(OWN, tmp_path / "my_lookup.py")
    experiment = write_profile(tmp_path, modules=["my_lookup"], benchmarks=LOOKUP)
    assert experiment.module_files == [tmp_path / "my_lookup.py"]
    assert experiment.profile.benchmark("lookup").notebook == "03_benchmark"


def test_a_module_is_imported_once(tmp_path):
    path = tmp_path / "counted.py"
    path.write_text(f"with open({str(tmp_path / 'log')!r}, 'a') as log:\n    log.write('x')\n")
    for _ in range(2):
        assert import_modules(["counted.py"], tmp_path) == [path]
    assert (tmp_path / "log").read_text() == "x"


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        (["none.py"], r"p\.yaml: modules: none\.py cannot be imported: FileNotFoundError: there is no file"),
        (["no_such_module"], r"modules: no_such_module cannot be imported: ModuleNotFoundError"),
        (["broken.py"], r"modules: broken\.py cannot be imported: ZeroDivisionError"),
        ("lookup.py", r"p\.yaml: modules: Input should be a valid list"),
        ([3], r"p\.yaml: modules\.0: Input should be a valid string"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(tmp_path, modules, said):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match=said):
        write_profile(tmp_path, modules=modules)


def test_a_models_folder_is_relative_to_the_root(tmp_path, tiny):
    folder = tmp_path / "models/mine"
    for part in tiny:
        part.save_pretrained(folder)
    experiment = write_profile(tmp_path, models=["models/mine", "tiny-llama"])
    assert experiment.model_source == str(folder)
    model, tokenizer = experiment.load_model()
    assert len(tokenizer) == len(tiny[1])
    assert model.config.hidden_size == tiny[0].config.hidden_size
    assert Experiment.load("p", model="tiny-llama", root=tmp_path).model_source == "tiny-llama"


METRICS = ("rouge", "rouge_score", "rapidfuzz", "jieba", "bm25s")
ELSEWHERE = (
    "snakemake",
    "papermill",
    "nbformat",
    "nbclient",
    "IPython",
    "ipywidgets",
    "datasets",
    "s3fs",
    "accelerate",
)
ALONE = """
import sys
from importlib.machinery import PathFinder

class Visible(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in sys.argv[2:] else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Visible
from ragkv.run import run_profile
assert run_profile("p", root=sys.argv[1])
"""


def test_a_run_needs_no_packages_but_its_own(tmp_path):
    """A profile whose metrics and methods need none of these packages runs without them."""
    (tmp_path / "params").mkdir()
    (tmp_path / "params/p.yaml").write_text(yaml.safe_dump(PROFILE))
    hidden = [*METRICS, *ELSEWHERE]
    command = [sys.executable, "-c", ALONE, str(tmp_path), *hidden]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
