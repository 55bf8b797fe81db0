"""Results that are damaged, of other parameters, or of another evaluation are named, never shown, and made again."""

import json
import logging
import multiprocessing
import os
import shutil
from random import Random

import pandas as pd
import pytest
import torch
from profiles import PROFILE, forget, write_profile

from ragkv import load_model
from ragkv.experiment import prompt_loop
from ragkv.experiment.evaluation import evaluate
from ragkv.experiment.experiment import Experiment
from ragkv.experiment.finished import damaged, made_from_present_rows, unfinished
from ragkv.experiment.running import start_run
from ragkv.experiment.steps import precompute_step
from ragkv.report import write_report
from ragkv.results.files import damage, read_rows, write_json, write_rows
from ragkv.run import run_profile

TIMES = ["ttft", "tpot", "load", "select"]
TASK = ("ruler", "vt_1")


@pytest.fixture(scope="module")
def finished_root(tmp_path_factory):
    """A profile that ran to its report."""
    root = tmp_path_factory.mktemp("finished")
    write_profile(root)
    run_profile("p", root=root, say=lambda line: None)
    return root


@pytest.fixture
def finished(finished_root, tmp_path):
    """A copy of it, to be changed."""
    shutil.copytree(finished_root, tmp_path, dirs_exist_ok=True)
    return Experiment.load("p", root=tmp_path)


def flip(path, random):
    content = bytearray(path.read_bytes())
    bit = random.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def values(table):
    return json.loads(table.drop(columns=TIMES).to_json(orient="records"))


def test_a_finished_run_is_finished_and_leaves_only_results(finished):
    assert unfinished(finished) == damaged(finished) == {}
    assert not list(finished.root.rglob("*.partial*"))
    results = [path for path in finished.outputs.folder.rglob("*") if path.suffix in (".json", ".parquet")]
    assert len(results) == 7
    assert all(damage(path) is None for path in results)


@pytest.mark.parametrize("kind", ["flip", "cut", "empty", "no checksum"])
@pytest.mark.parametrize("name", ["rows", "summary"])
def test_a_damaged_table_is_named_and_computed_again(finished, tiny, caplog, name, kind):
    whole = values(finished.rows(*TASK))
    path = getattr(finished.outputs, name)(*TASK)
    if kind == "flip":
        flip(path, Random(name))
    elif kind == "no checksum":
        path.with_name(path.name + ".checksum").unlink()
    else:
        os.truncate(path, path.stat().st_size // 2 if kind == "cut" else 0)
    assert set(damaged(finished)) == {path}
    assert finished.outputs.rows(*TASK) in unfinished(finished)
    with pytest.raises(ValueError, match=r"vt_1\.(json|parquet)"):
        write_report("p", finished.root)
    with caplog.at_level(logging.WARNING):
        again = evaluate(finished, *TASK, *tiny, progress=False)
    assert f"{path} is damaged" in caplog.text
    assert values(again) == values(finished.rows(*TASK)) == whole
    assert damaged(finished) == {}


def test_one_run_mends_every_damaged_result(finished, tiny):
    """Prompts, chunking, precompute, tokens, oracle, rows and summary, all with a bit flipped."""
    random = Random(0)
    outputs = finished.outputs
    before = values(finished.rows(*TASK))
    files = [outputs.chunking, outputs.precompute, outputs.tokens, outputs.oracle]
    files += [outputs.prompts(*TASK), outputs.rows(*TASK), outputs.summary(*TASK)]
    for path in files:
        flip(path, random)
    assert set(damaged(finished)) == set(files)
    page = run_profile("p", root=finished.root, say=lambda line: None)
    assert page.exists()
    assert unfinished(finished) == damaged(finished) == {}
    assert values(finished.rows(*TASK)) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": [*PROFILE["methods"], {"selector": "epic"}]}, "it was made with other methods"),
        ({"methods": [{"selector": "full_prefill"}, {"selector": "a3", "options": {"layer": 2}}]}, "other methods"),
        ({"chunk_tokens": 32}, "it was made with other profile"),
        ({"dtype": "bfloat16"}, "other profile"),
        ({"benchmarks": {"ruler": PROFILE["benchmarks"]["ruler"] | {"max_tokens": 5000}}}, "other benchmark"),
    ],
)
def test_results_of_other_parameters_are_never_in_the_report(finished, changes, said):
    """The table stays, the old report too, and a new one is refused until the table is made again."""
    page = finished.outputs.report.read_bytes()
    changed = write_profile(finished.root, **changes)
    assert said in unfinished(changed)[finished.outputs.rows(*TASK)]
    with pytest.raises(ValueError, match=said) as error:
        write_report("p", finished.root)
    assert "Run `make reproduce PROFILE=p` or `ragkv run p`" in str(error.value)
    assert finished.outputs.report.read_bytes() == page
    assert len(finished.rows(*TASK)) == 12
    write_profile(finished.root)  # back again: nothing is missing
    write_report("p", finished.root)
    assert finished.outputs.report.read_bytes() == page


def test_parameters_that_decide_no_result_leave_them_finished(finished):
    store = {"url": "elsewhere"}
    assert unfinished(write_profile(finished.root, store=store)) == {}


def test_other_versions_and_other_prompts_are_noticed(finished, monkeypatch):
    rows = finished.outputs.rows(*TASK)
    with monkeypatch.context() as patch:
        patch.setattr("ragkv.experiment.methods.__version__", "9.9")
        assert "it was made with other versions" in unfinished(finished)[rows]
    prompts = finished.outputs.prompts(*TASK)
    content = json.loads(prompts.read_text())
    content["items"].pop()
    write_json(prompts, content, checked=True)
    assert unfinished(finished)[rows] == "it was made with other prompts"


def test_results_of_another_layout_are_made_again(finished, tiny):
    """As an older or a newer version wrote them, with checksums that fit."""
    outputs = finished.outputs
    whole = values(finished.rows(*TASK))
    for content in ([], {"prompts": []}, {"items": [{"ids": [1]}]}, {"items": [[1]]}):
        write_json(outputs.prompts(*TASK), content, checked=True)
        assert "was written by another version: make the prompts again" in unfinished(finished)[outputs.rows(*TASK)]
    for path in (outputs.chunking, outputs.precompute, outputs.tokens, outputs.oracle, outputs.summary(*TASK)):
        write_json(path, {"version": 0}, checked=True)
    run_profile("p", root=finished.root, say=lambda line: None)
    assert unfinished(finished) == {}
    assert values(finished.rows(*TASK)) == whole


def turned(folder, tiny):
    """A model like the embedded one, but with its output embeddings turned around, saved in a folder."""
    for part in tiny:
        part.save_pretrained(folder)
    model, tokenizer = load_model(folder, device="cpu")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0))
    model.config.tie_word_embeddings = False
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return load_model(folder, device="cpu")


def test_tables_of_different_weights_are_not_shown_together(tmp_path, tiny):
    """Weights that changed in place between two tasks."""
    tasks = {name: {"prompts": 1, "lengths": [256], "max_new_tokens": 2} for name in ("vt_1", "niah_single_1")}
    experiment = write_profile(tmp_path, benchmarks={"ruler": {"source": "tiny", "tasks": tasks}})
    experiment.chunk(tiny[1])
    for task, (model, tokenizer) in zip(tasks, (tiny, turned(tmp_path / "other", tiny)), strict=True):
        experiment.precompute(model)
        evaluate(experiment, "ruler", task, model, tokenizer, progress=False)
    problems = unfinished(experiment)
    for task in tasks:
        assert problems[experiment.outputs.rows("ruler", task)] == "the tables are of different weights of the model"


def test_a_view_of_other_rows_is_not_shown(finished):
    """One that was made before the rows were made again with other parameters."""
    assert made_from_present_rows(finished, finished.outputs.tokens, benchmark="ruler", task="vt_1", ratio=0.1)
    assert not made_from_present_rows(finished, finished.outputs.tokens, ratio=0.2)
    view = json.loads(finished.outputs.tokens.read_text())
    for other in ({"identity": "other"}, {"task": "vt_2"}, {"benchmark": None}):
        write_json(finished.outputs.tokens, view | other, checked=True)
        assert list(unfinished(finished)) == [finished.outputs.tokens]
        with pytest.raises(ValueError, match=r"tokens\.json: it was made from other results"):
            write_report("p", finished.root)


def test_rows_and_summary_of_two_evaluations_do_not_pair(finished, tiny):
    """A run that was killed between the two, and a profile that is changed back afterwards."""
    outputs = finished.outputs
    whole = values(finished.rows(*TASK))
    other = finished.rows(*TASK).head(3)
    other.attrs["identity"] = "other"
    write_rows(outputs.rows(*TASK), other)
    assert unfinished(finished)[outputs.rows(*TASK)] == "it does not belong to vt_1.json"
    assert values(evaluate(finished, *TASK, *tiny, progress=False)) == whole


def test_a_failing_evaluation_leaves_the_finished_table(finished, tiny, monkeypatch):
    before = finished.outputs.rows(*TASK).read_bytes()
    changed = write_profile(finished.root, methods=[*PROFILE["methods"], {"selector": "epic"}])

    def out_of_memory(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(prompt_loop, "decode", out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            evaluate(changed, *TASK, *tiny, progress=False)
    assert finished.outputs.rows(*TASK).read_bytes() == before
    assert unfinished(changed)
    assert len(evaluate(changed, *TASK, *tiny, progress=False)) == 18


def test_rows_so_far_outlive_a_table_that_was_removed(finished, tiny, monkeypatch):
    """Snakemake removes or puts back the tables of a notebook that fails after its evaluation."""
    forget(finished, "vt_1")
    whole = values(evaluate(finished, *TASK, *tiny, progress=False))
    finished.outputs.rows(*TASK).unlink()
    finished.outputs.summary(*TASK).write_text("{}")
    monkeypatch.setattr(prompt_loop, "fused_prefill", None)  # nothing may be computed
    assert values(evaluate(finished, *TASK, *tiny, progress=False)) == whole
    write_report("p", finished.root)
    assert not list(finished.root.rglob("*.partial*"))


def _evaluate(root, start, queue):
    model = load_model("tiny-llama", device="cpu")
    experiment = Experiment.load("p", root=root)
    start.wait()
    queue.put(values(evaluate(experiment, *TASK, *model, progress=False)))


def test_two_evaluations_of_the_same_task_at_once(finished):
    """Both give the whole table, and what they leave is whole and undamaged."""
    whole = values(finished.rows(*TASK))
    forget(finished, "vt_1")
    context = multiprocessing.get_context("fork")
    start, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_evaluate, args=(finished.root, start, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=300) for _ in processes] == [whole, whole]
    for process in processes:
        process.join()
    assert unfinished(finished).keys() <= {finished.outputs.tokens}
    assert values(read_rows(finished.outputs.rows(*TASK), "")) == whole


def test_precompute_says_what_the_present_prompts_need(finished, tiny):
    """A profile with fewer tasks needs fewer segments, although none is computed."""
    before = json.loads(finished.outputs.precompute.read_text())
    precompute_step(finished, tiny[0])
    assert json.loads(finished.outputs.precompute.read_text()) == before  # of the run that computed them
    task = PROFILE["benchmarks"]["ruler"]["tasks"]["vt_1"] | {"prompts": 1}
    fewer = write_profile(finished.root, benchmarks={"ruler": {"source": "tiny", "tasks": {"vt_1": task}}})
    fewer.chunk(tiny[1])
    precompute_step(fewer, tiny[0])
    after = json.loads(fewer.outputs.precompute.read_text())
    assert after["segments"] < before["segments"]
    assert after["written"] == 0


def test_two_models_that_end_in_the_same_name_both_run(tmp_path, tiny):
    """The second has another answer to everything."""
    for part in tiny:
        part.save_pretrained(tmp_path / "a/final")
    turned(tmp_path / "b/final", tiny)
    write_profile(tmp_path, models=["a/final", "b/final"])
    page = run_profile("p", root=tmp_path, say=lambda line: None).read_text()
    first, second = Experiment.load_all("p", root=tmp_path)
    assert first.outputs.folder != second.outputs.folder
    assert first.outputs.manifest != second.outputs.manifest
    assert first.calibration != second.calibration
    assert first.rows(*TASK)["prediction"].tolist() != second.rows(*TASK)["prediction"].tolist()
    overview = pd.read_csv(tmp_path / "outputs/p/report/overview.csv")
    assert list(overview.columns) == ["method", "ratio", "recomputed", "a--final, ruler", "b--final, ruler"]
    assert page.count('<h2 id="a--final">') == page.count('<h2 id="b--final">') == 1
    index = (tmp_path / "outputs/index.html").read_text()
    assert "a--final" in index
    assert "b--final" in index


def test_a_killed_runs_locks_are_removed_and_a_living_runs_are_kept(finished, tmp_path):
    locks = tmp_path / "locks"
    locks.mkdir()
    ours, others = locks / "0.output.lock", locks / "1.output.lock"
    others.write_text(f"{tmp_path}/outputs/q/report.html\n")

    def lock():
        ours.write_text(f"{finished.outputs.report}\n{finished.outputs.tokens}\n")

    lock()
    with start_run(finished.outputs, locks):
        assert not ours.exists()
        lock()
        with pytest.raises(RuntimeError, match=rf"the profile 'p' is being run by process {os.getpid()} on "):
            start_run(finished.outputs, locks)
        assert ours.exists()
    start_run(finished.outputs, locks).close()
    assert not ours.exists()
    assert others.exists()
