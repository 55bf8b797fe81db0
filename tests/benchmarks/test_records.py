"""Records: values are kept as they were stored, and what cannot be right is an error with file and line."""

import datetime
import json
import os
from decimal import Decimal

import pyarrow as pa
import pytest
from helpers import byte_level_bpe
from pyarrow import parquet

from ragkv.benchmarks import records
from ragkv.benchmarks.longbench import LongBench
from ragkv.benchmarks.records import read_json, read_records

RECORD = {"input": "Who left?", "context": "The cook left.", "answers": ["the cook"], "length": 3, "all_classes": None}


def write(root, task, *lines):
    (root / f"{task}.jsonl").write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))


def examples(root, task="2wikimqa"):
    return LongBench(source=".", tasks={task: {}}).examples(task, byte_level_bpe(), root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": [None]}, "item 1 of the field 'answers' is null, expected str"),
        ({"answers": ["cook", 42]}, "item 2 of the field 'answers' is int, expected str"),
        ({"answers": [4.5]}, "item 1 of the field 'answers' is float, expected str"),
        ({"answers": [True]}, "item 1 of the field 'answers' is bool, expected str"),
        ({"answers": [["cook"]]}, "item 1 of the field 'answers' is list, expected str"),
        ({"answers": [{"text": "cook"}]}, "item 1 of the field 'answers' is dict, expected str"),
        ({"answers": None}, "the field 'answers' is null, expected list"),
        ({"answers": {"0": "cook"}}, "the field 'answers' is dict, expected list"),
        ({"context": ["One.", None]}, "item 2 of the field 'context' is null, expected str"),
        ({"context": [["One."]]}, "item 1 of the field 'context' is list, expected str"),
        ({"context": 5}, "the field 'context' is int, expected str or list"),
        ({"input": None}, "the field 'input' is null, expected str"),
        ({"all_classes": "a, b"}, "the field 'all_classes' is str, expected list"),
        ({"all_classes": ["a", None]}, "item 2 of the field 'all_classes' is null, expected str"),
        ({"chunks": ["One.", None], "question": "?"}, "item 2 of the field 'chunks' is null, expected str"),
        ({"context": "The \ud83d left."}, "the field 'context' has half of a surrogate pair"),
        ({"answers": ["\udc80"]}, "the field 'answers' has half of a surrogate pair"),
    ],
)
def test_values_of_the_wrong_type_are_named(tmp_path, changes, message):
    write(tmp_path, "2wikimqa", RECORD, RECORD | changes)
    with pytest.raises(ValueError, match=rf"2wikimqa\.jsonl line 2: {message}"):
        examples(tmp_path)


@pytest.mark.parametrize("length", [float("nan"), float("inf"), -1, True, None, "3", [3]])
def test_lengths_must_be_numbers(tmp_path, length):
    write(tmp_path, "2wikimqa_e", RECORD | {"length": length})
    with pytest.raises(ValueError, match=r"line 1: the field 'length' is .*, expected"):
        examples(tmp_path, "2wikimqa_e")


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("trec", {}, "trec needs the field 'all_classes'"),
        ("trec", {"all_classes": []}, "trec needs the field 'all_classes'"),
        ("trec_e", {"all_classes": None}, "trec needs the field 'all_classes'"),
        ("lsht", {}, "lsht needs the field 'all_classes'"),
        ("trec", {"all_classes": ["Date", "City"]}, "the answer 'the cook' is none of the record's classes"),
        ("lsht", {"all_classes": ["The cook"]}, "the answer 'the cook' is none of the record's classes"),
        (
            "2wikimqa",
            {"answers": ["...", "The"]},
            "no prediction matches the answer '...': it has no words but articles",
        ),
        ("passage_count", {}, "no prediction matches the answer 'the cook': passage_count needs '3'"),
        ("passage_count", {"answers": ["12 of them"]}, "no prediction matches the answer '12 of them'"),
        ("passage_retrieval_en", {"answers": ["12"]}, "no prediction matches .* needs 'Paragraph 3'"),
        ("passage_retrieval_en_e", {"answers": ["段落3"]}, "no prediction matches .* needs 'Paragraph 3'"),
        ("passage_retrieval_zh", {"answers": ["Paragraph 3"]}, "no prediction matches .* needs '段落3'"),
    ],
)
def test_answers_that_no_prediction_can_match_are_named(tmp_path, task, changes, message):
    write(tmp_path, task, RECORD | changes)
    with pytest.raises(ValueError, match=rf"{task}\.jsonl line 1: {message}"):
        examples(tmp_path, task)


@pytest.mark.parametrize(
    ("task", "answer", "classes"),
    [
        ("trec", "Date", ["Date", "City"]),
        ("triviaqa", "The The band", None),
        ("passage_count", "12", None),
        ("passage_retrieval_en", "Paragraph 12", None),
        ("passage_retrieval_zh", "段落12", None),
    ],
)
def test_right_answers_score_one(tmp_path, task, answer, classes):
    write(tmp_path, task, RECORD | {"answers": [answer], "all_classes": classes})
    (example,), _ = examples(tmp_path, task)
    scores = LongBench(source=".", tasks={task: {}}).task(task).scores(answer, example.answers, example.classes)
    assert set(scores.values()) == {1}


# files


def test_parquet_keeps_every_value(tmp_path):
    rows = [
        {
            "dataset": name,
            "float": 0.1 + 0.2,
            "tiny": 5e-324,
            "integer": 2**53 + 1,
            "date": datetime.date(1969, 7, 20),
            "time": datetime.datetime(1969, 7, 20, 20, 17, 40, 123456),
            "decimal": Decimal("1.10"),
            "bytes": b"\x00\xff",
            "texts": ["a", None, "\u732b"],
            "nested": {"x": [1.5, None]},
            "null": None,
        }
        for name in ("hotpotqa", "2wikimqa", "2wikimqa")
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "all.parquet")
    found = read_records("all.parquet", "2wikimqa", tmp_path)
    assert [record for _, record in found] == rows[1:]
    assert [where.split("all.parquet ")[1] for where, _ in found] == ["record 2", "record 3"]


def test_numbers_and_dates_as_answers_in_parquet_are_named(tmp_path):
    for answers, kind in (([0.123456789012345], "float"), ([datetime.date(1969, 7, 20)], "date")):
        parquet.write_table(pa.Table.from_pylist([RECORD | {"answers": answers}]), tmp_path / "2wikimqa.parquet")
        with pytest.raises(
            ValueError, match=rf"parquet record 1: item 1 of the field 'answers' is {kind}, expected str"
        ):
            examples(tmp_path)


def test_a_folders_name_adds_no_column_to_parquet(tmp_path):
    folder = tmp_path / "dataset=hotpotqa"
    folder.mkdir()
    parquet.write_table(pa.Table.from_pylist([RECORD]), folder / "2wikimqa.parquet")
    ((_, record),) = read_records("dataset=hotpotqa", "2wikimqa", tmp_path)
    assert record == RECORD


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": ' * 100_000, "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"length": ' + "9" * 10_000 + "}", "this is no JSON"),
        ("{'input': 1}", "this is no JSON"),
        ("null", "a record must be an object with fields, this is null"),
    ],
)
def test_lines_that_are_no_records_are_named(tmp_path, line, message):
    write(tmp_path, "2wikimqa", RECORD, line)
    with pytest.raises(ValueError, match=rf"2wikimqa\.jsonl line 2: .*{message}"):
        examples(tmp_path)


def test_whole_files_that_are_no_records_are_named(tmp_path):
    (tmp_path / "2wikimqa.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"2wikimqa\.json: lists and objects are nested too deeply"):
        examples(tmp_path)
    (tmp_path / "2wikimqa.json").write_text('[{},\n{"a" 1}]')
    with pytest.raises(ValueError, match=r"2wikimqa\.json: this is no JSON .* at line 2 column 6"):
        examples(tmp_path)
    (tmp_path / "2wikimqa.json").write_bytes(b"[\n\xff]")
    with pytest.raises(ValueError, match=r"2wikimqa\.json, line 2: this is not UTF-8"):
        examples(tmp_path)


def test_lines_that_are_not_utf_8_are_named(tmp_path):
    line = json.dumps(RECORD).encode()
    (tmp_path / "2wikimqa.jsonl").write_bytes(line + b"\n" + line.replace(b"cook", b"caf\xe9") + b"\n")
    with pytest.raises(ValueError, match=r"2wikimqa\.jsonl line 2: this is not UTF-8 text"):
        examples(tmp_path)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_marks_and_line_ends_of_other_systems_are_read(tmp_path, start, end):
    record = RECORD | {"context": "One\u2028two\x85three."}  # are no ends of lines
    lines = [json.dumps(record, ensure_ascii=False).encode(), b"", json.dumps(record).encode()]
    (tmp_path / "2wikimqa.jsonl").write_bytes(start + end.join(lines))
    found, _ = examples(tmp_path)
    assert [example.document for example in found] == [record["context"]] * 2


def test_escaped_pairs_are_characters(tmp_path):
    record = RECORD | {"context": "The \U0001f600 left."}
    write(tmp_path, "2wikimqa", json.dumps(record, ensure_ascii=True))
    ((example,), _) = examples(tmp_path)
    assert example.document == record["context"]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_records_that_are_too_long_are_named(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(records, "MAX_CHARACTERS", 1000)
    fitting, long = RECORD | {"context": "x" * 900}, RECORD | {"context": ["x" * 600, "x" * 600]}
    for record, fits in ((fitting, True), (long, False)):
        if suffix == "parquet":
            parquet.write_table(pa.Table.from_pylist([record]), tmp_path / "2wikimqa.parquet")
        else:
            content = [record] if suffix == "json" else record
            (tmp_path / f"2wikimqa.{suffix}").write_text(json.dumps(content))
        if fits:
            assert len(examples(tmp_path)[0]) == 1
        else:
            with pytest.raises(ValueError, match=r"(record|line) 1: the record has more than 1,000 characters: split"):
                examples(tmp_path)


def test_a_line_that_is_too_long_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_MAX_LINE", 1000)
    write(tmp_path, "2wikimqa", RECORD, "x" * 5000)
    with pytest.raises(ValueError, match=r"jsonl line 2: the record has more than .* characters"):
        examples(tmp_path)


def test_24_megabytes_in_a_line_are_refused(tmp_path):
    write(tmp_path, "2wikimqa", RECORD | {"context": "word " * 5_000_000})
    with pytest.raises(ValueError, match=r"line 1: the record has more than 8,388,608 characters"):
        examples(tmp_path)


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "2wikimqa.jsonl")
    (tmp_path / "2wikimqa.json").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no 2wikimqa\.jsonl"):
        examples(tmp_path)


def test_read_json(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": [1]}')
    assert read_json(tmp_path / "x.json") == {"a": [1]}


def test_names_that_occur_twice_are_named(tmp_path):
    write(tmp_path, "2wikimqa", json.dumps(RECORD)[:-1] + ', "answers": ["the chef"]}')
    with pytest.raises(ValueError, match=r"line 1: this is no JSON \(the name 'answers' occurs twice in an object\)"):
        examples(tmp_path)


def test_a_table_of_several_tasks_says_which_record_is_of_which(tmp_path):
    parquet.write_table(pa.Table.from_pylist([RECORD]), tmp_path / "all.parquet")
    for source in (".", "all.parquet"):
        with pytest.raises(ValueError, match=r"all\.parquet has no column 'dataset' .* records are of 2wikimqa"):
            read_records(source, "2wikimqa", tmp_path)


def test_a_file_in_place_of_its_folder_is_named(tmp_path):
    write(tmp_path, "2wikimqa", RECORD)
    with pytest.raises(ValueError, match=r"2wikimqa\.jsonl is a file: give the folder with 2wikimqa\.jsonl"):
        read_records("2wikimqa.jsonl", "2wikimqa", tmp_path)


def test_errors_without_a_text_are_named_by_their_type(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise OSError

    monkeypatch.setattr(parquet, "read_table", fail)
    (tmp_path / "2wikimqa.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"this is no parquet file \(OSError\)"):
        examples(tmp_path)
