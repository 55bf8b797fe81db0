"""RULER: generated tasks within their budget, answers where the evidence is, the official generator's files."""

import json
import re
from collections import Counter

import pytest
from test_chunking import byte_level_bpe

from ragkv.benchmarks.ruler import NEW_TOKENS, Ruler
from ragkv.benchmarks.ruler_retrieval import RETRIEVAL
from ragkv.prompt import encode

BPE = byte_level_bpe()
TASKS = list(NEW_TOKENS)
LENGTHS = {"cwe": 4500}  # three hundred words for the ten frequent ones alone


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with small files in SQuAD's and HotpotQA's formats."""
    folder = tmp_path_factory.mktemp("ruler")
    places = ["Ulmo", "Brisk", "Tarn", "Oster", "Lund", "Veld", "Mora", "Quill"]
    squad = {
        "data": [
            {
                "title": place,
                "paragraphs": [
                    {
                        "context": f"The town of {place} lies by a lake. Its bridge was built in {1800 + n}.",
                        "qas": [
                            {"question": f"When was {place}'s bridge built?", "id": f"{n}", "is_impossible": False,
                             "answers": [{"text": text, "answer_start": 0} for text in (f"{1800 + n}", f"in {1800 + n}")
                             ]},
                            {"question": f"Who rules {place}?", "id": f"{n}x", "is_impossible": True, "answers": []},
                        ],
                    }
                ],
            }
            for n, place in enumerate(places)
        ]
    }  # fmt: skip
    hotpot = [
        {
            "_id": str(n),
            "question": f"Which lake is near the mayor of {place}'s home?",
            "answer": f"Lake {place}ia",
            "supporting_facts": [[f"Mayor of {place}", 0], [f"Home of {place}", 0], [f"Home of {place}", 1]],
            "context": [
                [f"Mayor of {place}", ["He lives at home."]],
                [f"Home of {place}", ["It is a house.", f" It stands by Lake {place}ia."]],
                [f"Cheese of {place}", ["It is hard."]],
            ],
        }
        for n, place in enumerate(places)
    ]
    (folder / "squad.json").write_text(json.dumps(squad))
    (folder / "hotpot.json").write_text(json.dumps(hotpot))
    return folder


def ruler(task, **parameters):
    given = {"lengths": [LENGTHS.get(task, 800)], "prompts": 2} | parameters
    return Ruler(squad="squad.json", hotpotqa="hotpot.json", tasks={task: given})


def examples(root, task, **parameters):
    found, skipped = ruler(task, **parameters).examples(task, BPE, root)
    assert not skipped
    return found


def prompt(example):
    return example.before + example.document + example.after + example.answer_prefix


def tokens(example):
    return len(encode(BPE, prompt(example)))


@pytest.mark.parametrize("task", TASKS)
def test_the_budget_is_kept_and_used(root, task):
    lengths = [LENGTHS.get(task, 800), LENGTHS.get(task, 800) + 700]
    for example in examples(root, task, lengths=lengths):
        assert example.labels["length"] in lengths
        spare = example.labels["length"] - tokens(example) - NEW_TOKENS[task]
        assert spare >= 0
        if spare >= 100:  # nothing more could be put in: all documents are
            assert example.document.count("Document ") == {"qa_1": 8, "qa_2": 24}[task]


@pytest.mark.parametrize("task", TASKS)
def test_examples_depend_on_seed_length_and_number_alone(root, task):
    first = examples(root, task, prompts=3)
    assert examples(root, task, prompts=2) == first[:2]
    assert len({example.document for example in first}) == 3
    assert examples(root, task, prompts=1, seed=1)[0].document != first[0].document
    assert [e.id[-5:] for e in first] == ["-0000", "-0001", "-0002"]


@pytest.mark.parametrize("task", TASKS)
def test_the_answers_stand_in_the_evidence(root, task):
    for example in examples(root, task):
        evidence = " ".join(example.document[start:stop] for start, stop in example.evidence)
        assert example.answers
        assert example.answers[0] in evidence
        assert all(answer in evidence for answer in example.answers) or task == "qa_1"  # whose answers are alternatives
        assert all(answer not in example.before + example.after for answer in example.answers)
        kind = ruler(task).task(task)
        assert kind.scores(f"It is {', '.join(example.answers)}.", example.answers, ()) == {"string_match": 1}
        assert kind.scores("I do not know", example.answers, ()) == {"string_match": 0}


@pytest.mark.parametrize("task", TASKS)
def test_too_short_a_length_names_the_shortest(root, task):
    with pytest.raises(ValueError, match=rf"{task} at a length of 40 tokens") as error:
        examples(root, task, lengths=[40])
    first = Ruler(squad="squad.json", hotpotqa="hotpot.json", tasks={task: {"lengths": [40], "prompts": 1}})
    shortest = int(re.search(r"take (\d+)", str(error.value))[1])
    drawn = first._draw(task, 40, 0, first._questions(task, root) if task.startswith("qa") else None, root)
    fitted = first._fitted(drawn, task, shortest, 0, BPE)
    assert tokens(fitted) + NEW_TOKENS[task] == shortest
    with pytest.raises(ValueError, match=f"take {shortest}"):
        first._fitted(drawn, task, shortest - 1, 0, BPE)


FACT = re.compile(r"The magic (?:number|uuid) of ([\w -]+?) is ([\w-]+)\.")


@pytest.mark.parametrize("task", RETRIEVAL)
def test_needles_are_what_the_task_says(root, task):
    """Read back by a pattern: keys, values, and how many of them."""
    settings = RETRIEVAL[task]
    for example in examples(root, task, lengths=[1500]):
        facts = FACT.findall(example.document)
        by_key = Counter(key for key, _ in facts)
        asked = [key for key in by_key if key in example.after]
        assert len(asked) == settings.asked
        assert sorted(value for key, value in facts if key in asked) == sorted(example.answers)
        assert all(by_key[key] == settings.values for key in asked)
        assert len({value for _, value in facts}) == len(facts)
        if settings.haystack == "needles":
            assert FACT.sub("", example.document).strip() == ""
            assert len(facts) > 5
        else:
            assert len(by_key) == settings.keys
        assert all((len(value) == 36) == (settings.value == "uuid") for _, value in facts)


def test_needles_stand_everywhere(root):
    places = [example.evidence[0][0] / len(example.document) for example in examples(root, "niah_single_1", prompts=40)]
    assert min(places) < 0.2
    assert max(places) > 0.8


def test_variables_hold_the_value(root):
    """Followed statement by statement."""
    for example in examples(root, "vt"):
        value, held = re.search(r"value (\d+)", example.after)[1], {}
        for name, what in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", example.document):
            held[name] = held.get(what, what)
        assert {name for name, what in held.items() if what == value} == set(example.answers)
        assert len(example.answers) == 5


def test_common_words_are_the_most_common(root):
    for example in examples(root, "cwe"):
        words = re.findall(r"\d+\. (\w+)", example.document)
        assert re.findall(r"(\d+)\. ", example.document) == [str(n) for n in range(1, len(words) + 1)]
        counts = Counter(words).most_common()
        assert {word for word, _ in counts[:10]} == set(example.answers)
        assert {count for _, count in counts[:10]} == {30}
        assert {count for _, count in counts[10:]} == {3}


def test_frequent_words_are_the_most_frequent(root):
    for example in examples(root, "fwe", lengths=[2000]):
        counts = Counter(example.document.split()).most_common()
        assert [word for word, _ in counts[:3]] == list(example.answers)
        assert counts[2][1] > counts[3][1]
        assert counts[0][1] / counts[1][1] == pytest.approx(4, rel=0.1)  # rank to the power of -2


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_questions_without_a_file_say_what_is_missing(root, task):
    field = {"qa_1": "squad", "qa_2": "hotpotqa"}[task]
    with pytest.raises(ValueError, match=f"{task} needs the benchmark's file of questions: give its path as {field}"):
        Ruler(tasks={task: {}}).examples(task, BPE, root)
    with pytest.raises(FileNotFoundError, match=r"none\.json is not there"):
        Ruler(tasks={task: {}}, **{field: "none.json"}).examples(task, BPE, root)


OFFICIAL = {  # inputs in the shape that the official generator's templates give: (before, document, after)
    "niah_single_1": ("Remember the number here.\n", "One.\nThe number of x is 7.\nTwo.", "\nWhat is the number of x?"),
    "vt": (
        "Follow the assignments.\n\n",
        "VAR A = 1\nQuestion: Who holds 1? Answer: A\n\nFollow the assignments.\n\nVAR B = 2",
        "\nQuestion: Who holds 2?",
    ),
    "cwe": ("Below is a list.\n", "1. a 2. b\nQuestion: Which? Answer: a\nBelow:\n1. c 2. d", "\nQuestion: Which?"),
    "fwe": ("Read the coded text. Find the words. ", "... abc abc ... " * 60, "\nQuestion: Which three?"),
    "qa_1": ("Answer from the documents.\n\n", "Document 1:\nIt is blue.\n\nOnly answer.\n", "\nQuestion: Which?"),
}  # fmt: skip


@pytest.mark.parametrize("task", OFFICIAL)
@pytest.mark.parametrize("place", ["1024/data/{}/validation.jsonl", "1024/{}/validation.jsonl", "1024/{}.jsonl",
                                   "{}/validation.jsonl", "{}.jsonl"])  # fmt: skip
def test_official_files_load_unchanged(tmp_path, task, place):
    text = "".join(OFFICIAL[task])
    path = tmp_path / "official" / place.format(task)
    path.parent.mkdir(parents=True)
    record = {"index": 0, "input": text, "outputs": ["7"], "length": 1000, "answer_prefix": " It is"}
    older = {"index": 1, "input": text + " Answer: It is", "outputs": ["7"], "length": 1000}
    path.write_text("\n".join(json.dumps(r) for r in (record, older, record | {"outputs": []})))
    benchmark = Ruler(source="official", tasks={task: {"lengths": [1024]}})
    (first, second), skipped = benchmark.examples(task, BPE, tmp_path)
    assert first.before + first.document + first.after == text
    assert (first.before, first.after) == (OFFICIAL[task][0], OFFICIAL[task][2].lstrip("\n"))
    assert first.answer_prefix == " It is"
    assert second.after.endswith(" Answer: It is")
    assert second.answer_prefix == ""
    assert first.labels == {"length": 1024}
    assert len(skipped) == 1
    assert "line 3: no outputs" in skipped[0]


def test_bad_official_files_are_named(tmp_path):
    benchmark = Ruler(source="official", tasks={"vt": {"lengths": [1024]}})
    with pytest.raises(FileNotFoundError, match="official is not there"):
        benchmark.examples("vt", BPE, tmp_path)
    (tmp_path / "official").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no vt\.jsonl"):
        benchmark.examples("vt", BPE, tmp_path)
    (tmp_path / "official/vt.jsonl").write_text('{"input": "x"}\n')
    with pytest.raises(ValueError, match=r"vt\.jsonl line 1: the field 'outputs' is missing"):
        benchmark.examples("vt", BPE, tmp_path)


@pytest.mark.parametrize(
    ("task", "prediction", "answers", "score"),
    [
        ("niah_multivalue", "12, and 34", ["12", "34", "56", "78"], 1 / 2),
        ("vt", "abcde", ["ABCDE"], 1),  # whatever the case
        ("cwe", "\x00one\x01two\n", ["one", "two"], 1),
        ("qa_1", "in 1801", ["1801", "never"], 1),  # one of the references is enough
        ("qa_2", "never", ["1801"], 0),
    ],
)
def test_scores_are_the_official_ones(task, prediction, answers, score):
    assert Ruler(tasks={task: {}}).task(task).scores(prediction, answers, ()) == {"string_match": score}


def test_unknown_tasks_list_what_there_is():
    with pytest.raises(ValueError, match="unknown task of RULER 'niah': choose one of niah_single_1, "):
        Ruler(tasks={"niah": {}})
    with pytest.raises(ValueError, match=r"choose one of .*vt_3"):
        Ruler(source="tiny", tasks={"cwe": {}})


def test_essays_come_from_the_users_folder(tmp_path):
    (tmp_path / "essays").mkdir()
    (tmp_path / "essays/one.txt").write_text("Whales sleep. They dream of boats. ")
    benchmark = Ruler(haystack="essays", tasks={"niah_single_2": {"lengths": [600], "prompts": 1}})
    (example,), _ = benchmark.examples("niah_single_2", BPE, tmp_path)
    assert set(re.findall(r"[A-Z][^.]*\.", FACT.sub("", example.document))) == {"Whales sleep.", "They dream of boats."}
