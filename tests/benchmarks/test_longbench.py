"""LongBench: records from every kind of source, prompts, scores, and errors."""

import json

import pandas as pd
import pytest
from helpers import byte_level_bpe

from ragkv.benchmarks.longbench import LongBench
from ragkv.benchmarks.longbench_tasks import LONGBENCH_E, TASKS, WORDINGS
from ragkv.benchmarks.records import read_records, require

FEW_SHOT_OR_CODE = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}


def record(**changes):
    return {
        "input": "Who left?",
        "context": "Passage 1:\nThe {cook} left.\n\nPassage 2:\nIt rained.",
        "answers": ["the cook", "The chef"],
        "length": 12,
        "dataset": "2wikimqa",
        "language": "en",
        "all_classes": None,
        "_id": "0",
    } | changes


def write_lines(path, records):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n", encoding="utf-8")


def examples(root, task="2wikimqa", source="data", **parameters):
    benchmark = LongBench(source=source, tasks={task: {}}, **parameters)
    return benchmark.examples(task, byte_level_bpe(), root)


def test_official_lines(tmp_path):
    write_lines(tmp_path / "data/2wikimqa.jsonl", [record(), "", record(input="Who rained?")])
    (first, second), skipped = examples(tmp_path)
    assert not skipped
    assert first.document == record()["context"]
    assert first.answers == ("the cook", "The chef")
    assert first.after.count("Who left?") == 1
    assert (first.id, second.id) == ("2wikimqa-0000", "2wikimqa-0001")
    assert not first.labels


def test_buckets_of_longbench_e(tmp_path):
    lengths = [0, 3999, 4000, 7999, 8000, 50_000]
    write_lines(tmp_path / "data/2wikimqa_e.jsonl", [record(length=length) for length in lengths])
    found, _ = examples(tmp_path, "2wikimqa_e")
    assert [e.labels["bucket"] for e in found] == ["0-4k", "0-4k", "4-8k", "4-8k", "8k+", "8k+"]


def test_every_source_gives_the_same_examples(tmp_path):
    records = [record(), record(input="Who rained?", all_classes=["a", "b"])]
    other = record(dataset="hotpotqa", input="Not this one")
    write_lines(tmp_path / "lines/2wikimqa.jsonl", records)
    (tmp_path / "list").mkdir()
    (tmp_path / "list/2wikimqa.json").write_text(json.dumps(records))
    for name in ("own", "all"):
        (tmp_path / name).mkdir()
    pd.DataFrame(records).to_parquet(tmp_path / "own/2wikimqa.parquet")
    pd.DataFrame([other, *records]).to_parquet(tmp_path / "all/longbench.parquet")
    sources = ["lines", "list", "own", "all", "all/longbench.parquet"]
    found = [examples(tmp_path, source=source) for source in sources]
    assert all(some == found[0] for some in found)
    assert found[0][0][1].classes == ("a", "b")


def test_the_hub_through_datasets(tmp_path, monkeypatch):
    """A data set in a folder, which `datasets` loads like one from the hub."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "repository"
    write_lines(repository / "data/2wikimqa.jsonl", [record()])
    (repository / "README.md").write_text(
        "---\nconfigs:\n- config_name: 2wikimqa\n  data_files:\n  - split: test\n    path: data/2wikimqa.jsonl\n---\n"
    )
    (found,), _ = examples(tmp_path, source=f"hf:{repository}")
    assert found.document == record()["context"]
    with pytest.raises(ValueError, match=r"hotpotqa of hf:.* could not be loaded .*: download"):
        examples(tmp_path, "hotpotqa", source=f"hf:{repository}")


def test_chunked_records_of_the_research_code(tmp_path):
    """Files of the form inputs/<model>/<dataset>.json: chunks are kept as they are."""
    (tmp_path / "inputs").mkdir()
    old = [{"chunks": ["One. ", "Two."], "question": "Which?", "answers": ["one"], "all_classes": None}]
    (tmp_path / "inputs/2wikimqa.json").write_text(json.dumps(old))
    (found,), _ = examples(tmp_path, source="inputs")
    assert found.document == ("One. ", "Two.")
    assert "Which?" in found.after


def test_passages_given_as_a_list(tmp_path):
    write_lines(tmp_path / "data/2wikimqa.jsonl", [record(context=["One.", "Two."])])
    assert examples(tmp_path)[0][0].document == ("One.", "Two.")


@pytest.mark.parametrize("task", [*TASKS, *(f"{task}_e" for task in LONGBENCH_E)])
def test_every_task_is_asked_and_scored(tmp_path, task):
    answers = {"passage_retrieval_en": "Paragraph 3", "passage_retrieval_zh": "段落3", "passage_count": "3"}
    answer = answers.get(task.removesuffix("_e"), "blue")
    context = "Some text with {braces} and {input}."
    given = record(context=context, input="the QUESTION", answers=["zzz 99", answer], all_classes=["blue", "red"])
    if task.startswith("passage_") or task[:4] in ("trec", "lsht"):
        given["answers"] = [answer]
    write_lines(tmp_path / f"data/{task}.jsonl", [given])
    (found,), _ = examples(tmp_path, task)
    kind = LongBench(source="data", tasks={task: {}}).task(task)
    prompt = found.before + found.document + found.after
    assert context in prompt
    asked = any("{input}" in text for text in (WORDINGS[task.removesuffix("_e")].before, found.before))
    assert ("the QUESTION" in found.after) == ("{input}" in WORDINGS[task.removesuffix("_e")].after)
    assert not asked
    scores = kind.scores(f"\n{answer}\n" if task[:4] in ("trec", "lsht") else answer, found.answers, found.classes)
    assert next(iter(scores.values())) == pytest.approx(1, abs=1e-6)
    assert next(iter(kind.scores("~", found.answers, found.classes).values())) < 0.2
    assert kind.chat == (task.removesuffix("_e") not in FEW_SHOT_OR_CODE)


@pytest.mark.parametrize("task", ["trec", "triviaqa", "samsum", "lsht"])
def test_few_shot_answers_end_with_their_first_line(task):
    scores = TASKS[task].scores
    assert scores("\n\nblue\nQuestion: next", ["blue"], ["blue", "next"]) == scores("blue", ["blue"], ["blue", "next"])
    assert scores("no\nblue", ["blue"], ["blue"]) == scores("no", ["blue"], ["blue"])


def test_limits_and_stops_are_those_of_the_benchmark():
    longest = {name: task.max_new_tokens for name, task in TASKS.items()}
    assert {name for name, limit in longest.items() if limit == 512} == {"gov_report", "multi_news", "qmsum", "vcsum"}
    assert {name for name, task in TASKS.items() if task.stop} == {"samsum"}
    assert len(TASKS) == 21
    assert len(LONGBENCH_E) == 13


def test_the_benchmarks_own_prompts(tmp_path):
    write_lines(tmp_path / "data/2wikimqa.jsonl", [record(input="Is {this} it?")])
    (tmp_path / "prompts.json").write_text(json.dumps({"2wikimqa": "Read {x}: {context}\nNow {input}!", "trec": "?"}))
    (found,), _ = examples(tmp_path, prompts_file="prompts.json")
    assert (found.before, found.after) == ("Read {x}: ", "\nNow Is {this} it?!")
    write_lines(tmp_path / "data/trec.jsonl", [record()])
    for task in ("trec", "lcc"):
        write_lines(tmp_path / f"data/{task}.jsonl", [record()])
        with pytest.raises(ValueError, match=rf"prompts\.json.*'{task}'.*{{context}}"):
            examples(tmp_path, task, prompts_file="prompts.json")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json is not there"):
        examples(tmp_path, prompts_file="nowhere.json")


def test_unusable_records_are_skipped_and_reported(tmp_path):
    records = [record(answers=[]), record(), record(answers=[" "]), record(context="  "), record()]
    write_lines(tmp_path / "data/2wikimqa.jsonl", records)
    found, skipped = examples(tmp_path)
    assert [e.id for e in found] == ["2wikimqa-0001", "2wikimqa-0004"]  # ids say where in the file
    assert [line.split("2wikimqa.jsonl ")[1] for line in skipped] == [
        "line 1: no answers", "line 3: no answers", "line 4: the document is empty"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([record(), "{broken"], r"2wikimqa\.jsonl line 2: this is no JSON"),
        ([record(), "", "[1]"], r"2wikimqa\.jsonl line 3: a record must be an object"),
        ([{k: v for k, v in record().items() if k != "answers"}], r"line 1: the field 'answers' is missing; there are"),
        ([record(answers="blue")], r"line 1: the field 'answers' is str, expected list"),
        ([record(context=None)], r"line 1: the field 'context' is null, expected str or list"),
    ],
)
def test_bad_lines_are_named(tmp_path, lines, said):
    write_lines(tmp_path / "data/2wikimqa.jsonl", lines)
    with pytest.raises(ValueError, match=said):
        examples(tmp_path)


def test_missing_sources_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data is not there: put the benchmark's files there"):
        examples(tmp_path)
    write_lines(tmp_path / "data/trec.jsonl", [record()])
    with pytest.raises(FileNotFoundError, match=r"no 2wikimqa\.jsonl, .*: there are trec"):
        examples(tmp_path)
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"bad\.parquet: this is no parquet file"):
        read_records("bad.parquet", "2wikimqa", tmp_path)
    with pytest.raises(ValueError, match=r"unknown task of LongBench '2wiki': choose one of qasper, .*2wikimqa"):
        LongBench(source="data", tasks={"2wiki": {}})
    with pytest.raises(ValueError, match="choose one of 2wikimqa"):
        LongBench(source="tiny", tasks={"trec": {}})


def test_required_fields():
    require({"a": 1, "b": []}, "here", {"a": (int, str), "b": list})
    with pytest.raises(ValueError, match="here: the field 'c' is missing; there are a"):
        require({"a": 1}, "here", {"c": int})
