"""Profiles, evaluation and results on disk."""

import json

import pandas as pd
import pytest
import yaml

from ragkv import load_model, precompute
from ragkv.experiment import Experiment, evaluate, summarise
from ragkv.results import read_partial, write_rows

PROFILE = {
    "models": ["tiny-llama"],
    "benchmark": "small",
    "chunk_tokens": 64,
    "max_new_tokens": 4,
    "tasks": {"needle": {"prompts": 3, "length": 160, "ratios": [0.1, 1.0]}},
    "methods": [{"selector": "full_prefill"}, {"selector": "full_reuse"}, {"selector": "a3"}],
}


def write_profile(root, **changes):
    folder = root / "params"
    folder.mkdir(exist_ok=True)
    (folder / "p.yaml").write_text(yaml.safe_dump(PROFILE | changes))
    return Experiment.load("p", root=root)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny-llama", device="cpu")


@pytest.fixture
def ready(tmp_path, tiny):
    """An experiment whose prompts are chunked and precomputed."""
    experiment = write_profile(tmp_path)
    precompute(tiny[0], experiment.chunk(tiny[1])["needle"], experiment.store)
    return experiment


def without_times(rows):
    return rows.drop(columns=["ttft", "tpot", "load", "select"])


def test_rows_cover_every_prompt_method_and_ratio(ready, tiny):
    rows = evaluate(ready, "needle", *tiny, progress=False)
    assert len(rows) == 3 * (1 + 1 + 2)
    assert not rows.duplicated(["prompt", "method", "ratio"]).any()
    for row in rows.itertuples():
        question = row.prompt_tokens - row.document_tokens - 7  # seven tokens of prefix
        prefix = 7 if row.method == "full_prefill" else 0
        assert len(row.recomputed) == int(row.ratio * row.document_tokens) + question + prefix
        assert 0 <= row.load + row.select <= row.ttft
    written = pd.read_parquet(ready.outputs.rows("needle"))
    assert written["prediction"].tolist() == rows["prediction"].tolist()
    summary = json.loads(ready.outputs.summary("needle").read_text())
    assert {"torch", "transformers", "device", "commit", "model"} <= set(summary["provenance"])
    assert len(summary["summary"]) == len(summarise(rows)) == 4


def test_the_same_parameters_give_the_same_table(ready, tiny):
    first, second = (without_times(evaluate(ready, "needle", *tiny, progress=False)) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_evaluation_goes_on_where_it_stopped(ready, tiny, monkeypatch, after):
    from ragkv import experiment as module

    whole = without_times(evaluate(ready, "needle", *tiny, progress=False))
    real, calls = module.append_rows, []

    def interrupted(path, rows):
        if len(calls) == after:
            with path.open("a") as file:
                file.write('{"prompt": "needle-00')  # a line cut off by the interruption
            raise KeyboardInterrupt
        calls.append(path)
        real(path, rows)

    monkeypatch.setattr(module, "append_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(ready, "needle", *tiny, progress=False)
    resumed = []
    monkeypatch.setattr(module, "append_rows", lambda path, rows: (resumed.extend(rows), real(path, rows)))
    pd.testing.assert_frame_equal(without_times(evaluate(ready, "needle", *tiny, progress=False)), whole)
    assert len(resumed) == (3 - after) * 4
    assert not list(ready.outputs.folder.glob("*.partial*"))


def test_rows_of_other_parameters_are_not_mixed_in(ready, tiny):
    from ragkv.experiment import _identity

    prompts, task = ready.prompts()["needle"], ready.profile.task("needle")
    same = _identity(tiny[0], task, ready.profile, prompts)
    other = ready.profile.model_copy(update={"max_new_tokens": 5})
    assert same == _identity(tiny[0], task, ready.profile, prompts)
    assert (
        len({same, _identity(tiny[0], task, other, prompts), _identity(tiny[0], task, ready.profile, prompts[:2])}) == 3
    )


def test_a_cut_off_line_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_partial(path) == [{"a": 1}, {"a": 2}]
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"benchmark": "none"}, "choose one of small"),
        ({"tasks": {"vt_9": {"prompts": 1, "length": 64}}}, "vt_3"),
        ({"tasks": {"needle": {"prompts": 0, "length": 64}}}, "tasks.needle.prompts"),
        ({"methods": [{"selector": "best"}]}, "cacheblend"),
        ({"methods": [{"selector": "a3", "options": {"kernl": 3}}]}, "kernel"),
        ({"tasks": {"needle": {"prompts": 1, "length": 64, "ratios": [1.5]}}}, "from 0 to 1"),
        ({"methods": [{"selector": "a3"}, {"selector": "a3", "options": {"layer": 2}}]}, "label"),
        ({"chunk_size": 64}, "there is no such parameter"),
        ({"context": "everything"}, "context"),
    ],
)
def test_bad_parameters_are_named(tmp_path, changes, said):
    with pytest.raises(ValueError, match=r"p\.yaml") as error:
        write_profile(tmp_path, **changes)
    assert said in str(error.value)


def test_unknown_profile_model_and_task_name_what_there_is(tmp_path):
    experiment = write_profile(tmp_path)
    with pytest.raises(ValueError, match="there are p"):
        Experiment.load("q", root=tmp_path)
    with pytest.raises(ValueError, match="tiny-llama"):
        Experiment.load("p", model="gpt", root=tmp_path)
    with pytest.raises(ValueError, match="needle"):
        experiment.rows("vt_1")
    with pytest.raises(FileNotFoundError, match="01_chunking"):
        experiment.prompts()
    with pytest.raises(FileNotFoundError, match="03_evaluation"):
        experiment.rows("needle")


def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    write_rows(path, pd.DataFrame({"a": [1]}))

    def full(self, target, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OSError, match="disk is full"):
        write_rows(path, pd.DataFrame({"a": [2]}))
    monkeypatch.undo()
    assert pd.read_parquet(path)["a"].tolist() == [1]
