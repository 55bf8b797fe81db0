"""RULER: generated tasks within their budget, evidence that holds the answers, files of the official generator."""

import json
import re
from collections import Counter
from itertools import islice
from random import Random

import pytest
from helpers import byte_level_bpe
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkv.benchmarks.ruler import DRAW, NEW_TOKENS, Ruler, _largest
from ragkv.benchmarks.ruler_retrieval import RETRIEVAL
from ragkv.benchmarks.ruler_tasks import distinct
from ragkv.prompt.encoding import encode

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
def test_examples_depend_only_on_seed_length_and_number(root, task):
    first = examples(root, task, prompts=3)
    assert examples(root, task, prompts=2) == first[:2]
    assert len({example.document for example in first}) == 3
    assert examples(root, task, prompts=1, seed=1)[0].document != first[0].document
    assert [e.id[-5:] for e in first] == ["-0000", "-0001", "-0002"]


@pytest.mark.parametrize("task", TASKS)
def test_the_evidence_contains_the_answers(root, task):
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
    benchmark = ruler(task, lengths=[40], prompts=1)
    shortest = int(re.search(r"take (\d+)", str(error.value))[1])
    drawn = benchmark._drawer(task, root)[0](40, 0)
    fitted = benchmark._fitted(drawn, task, shortest, 0, BPE)
    assert tokens(fitted) + NEW_TOKENS[task] == shortest
    with pytest.raises(ValueError, match=f"take {shortest}"):
        benchmark._fitted(drawn, task, shortest - 1, 0, BPE)


FACT = re.compile(r"The magic (?:number|uuid) of ([\w -]+?) is ([\w-]+)\.")


@pytest.mark.parametrize("task", RETRIEVAL)
def test_needles_follow_the_tasks_settings(root, task):
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


def test_unknown_tasks_list_the_known_ones():
    with pytest.raises(ValueError, match="unknown task of RULER 'niah': choose one of niah_single_1, "):
        Ruler(tasks={"niah": {}})
    with pytest.raises(ValueError, match=r"choose one of .*vt_3"):
        Ruler(source="tiny", tasks={"cwe": {}})


def test_essays_come_from_the_users_folder(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/one.txt").write_text("Whales sleep. They dream of boats. ")
    benchmark = Ruler(haystack="texts", tasks={"niah_single_2": {"lengths": [600], "prompts": 1}})
    (example,), _ = benchmark.examples("niah_single_2", BPE, tmp_path)
    assert set(re.findall(r"[A-Z][^.]*\.", FACT.sub("", example.document))) == {"Whales sleep.", "They dream of boats."}


@pytest.mark.parametrize("task", TASKS)
def test_one_more_would_not_fit(root, task):
    length = {"cwe": 4500, "qa_1": 350}.get(task, 800)
    benchmark = ruler(task, lengths=[length])
    example = benchmark.examples(task, BPE, root)[0][1]
    layout = benchmark._drawer(task, root)[0](length, 1).layout
    fits = [layout(size) for size in range(20 if task == "fwe" else 1, 150)]
    fits = [laid for laid in fits if len(encode(BPE, _whole(laid))) + NEW_TOKENS[task] <= length]
    assert 0 < len(fits) < 130
    assert example.document == fits[-1].document
    assert example.evidence == fits[-1].evidence


def _whole(laid):
    return laid.before + laid.document + laid.after + laid.answer_prefix


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(0, 9), st.integers(0, 3000), st.booleans())
@settings(max_examples=300)
def test_the_largest_size_is_found(units, smallest, more, endless):
    """Token counts that grow unevenly and may stop growing; compared with trying every size."""

    def tokens(size):
        taken = size - smallest
        rounds, rest = divmod(taken, len(units)) if endless else (taken >= len(units), taken)
        if not endless and rounds:
            rest = 0
        return 50 + rounds * sum(units) + sum(units[:rest])

    room = 50 + more
    found = _largest(tokens, smallest, 50, room)
    everything = not endless and tokens(found) == 50 + sum(units)
    assert tokens(found) <= room
    assert everything or tokens(found + 1) > room


@pytest.mark.parametrize("more", [*range(200), 1000, 4882, 10_000])
def test_frequent_words_are_never_as_frequent_as_others(more):
    drawn = DRAW["fwe"](Random(0), iter(()))
    size = drawn.smallest + more
    laid = drawn.layout(size)
    counts = Counter(laid.parts).most_common()
    assert tuple(word for word, _ in counts[:3]) == laid.answers
    assert counts[0][1] > counts[1][1] > counts[2][1] > counts[3][1]
    assert [count for _, count in counts] == [size // rank**2 for rank in range(1, size) if size // rank**2]


def test_no_needle_is_like_another():
    """No key and no value is a part of another one, so an answer that is found was really given."""
    for task in RETRIEVAL:
        facts = FACT.findall(DRAW[task](Random(1), iter(["Nothing."] * 400)).layout(400).document)
        for said in (sorted({key for key, _ in facts}), sorted({value for _, value in facts})):
            everything = "|".join(said)
            assert all(everything.count(one) == 1 for one in said)


def test_running_out_of_names_is_an_error():
    rng = Random(0)
    names = distinct(lambda: rng.choice("abc"))
    assert sorted(islice(names, 3)) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="all 3 names of a kind are used up: ask for a shorter length"):
        next(names)


def test_documents_of_the_users_texts_begin_at_different_places(tmp_path):
    (tmp_path / "texts").mkdir()
    told = [f"The {a} met the {b}." for a in ("owl", "fox", "cat", "hen", "elk") for b in ("ant", "bee", "fly", "bug")]
    (tmp_path / "texts/one.md").write_text(" ".join(told))
    benchmark = Ruler(haystack="texts", tasks={"niah_single_2": {"lengths": [500], "prompts": 12}})
    begins = set()
    for example in benchmark.examples("niah_single_2", BPE, tmp_path)[0]:
        sentences = re.findall(r"[A-Z][^.]*\.", FACT.sub("", example.document))
        start = told.index(sentences[0])
        assert sentences == [told[(start + i) % len(told)] for i in range(len(sentences))]
        begins.add(start)
    assert len(begins) > 3


def test_lengths_are_positive_and_distinct():
    with pytest.raises(ValueError, match="500 given more than once"):
        Ruler(tasks={"vt": {"lengths": [500, 900, 500]}})
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Ruler(tasks={"vt": {"lengths": [0]}})


def test_sizes_are_cut_to_the_longest_prompt():
    benchmark = Ruler(max_tokens=1000, tasks={"vt": {"lengths": [512, 4096], "prompts": 3}})
    assert benchmark.sizes("vt") == [(3, 512), (3, 1000)]


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_no_question_is_asked_twice(root, task):
    asked = [example.after for example in examples(root, task, prompts=50)]
    assert len(asked) == len(set(asked)) == 8
    again = [example.after for example in examples(root, task, prompts=50, seed=1)]
    assert again != asked  # drawn, not taken from the file's beginning
    assert set(again) == set(asked)


def test_distractors_about_the_same_come_first(root, tmp_path):
    """The third document of each HotpotQA question, and other paragraphs of the same SQuAD article."""
    for example in examples(root, "qa_2", prompts=8):
        place = re.search(r"mayor of (\w+)", example.after)[1]
        assert f"Cheese of {place}\n" in example.document
    articles = [
        {"title": a, "paragraphs": [
            {"context": f"{a} on {b}. " + "So it goes. " * 12,
             "qas": [{"question": f"What of {a} {b}?", "id": a + b, "answers": [{"text": b, "answer_start": 0}]}]}
            for b in ("art", "law")]}
        for a in ("Ulmo", "Brisk", "Tarn", "Oster")
    ]  # fmt: skip
    (tmp_path / "squad.json").write_text(json.dumps({"data": articles}))
    for example in examples(tmp_path, "qa_1", prompts=8, lengths=[560]):
        place = re.search(r"What of (\w+)", example.after)[1]
        assert example.document.count("Document ") < 8
        assert f"{place} on art" in example.document
        assert f"{place} on law" in example.document


SQUAD_QUESTION = {"question": "When?", "id": "1", "answers": [{"text": "now", "answer_start": 0}]}
HOTPOT_QUESTION = {"question": "When?", "answer": "now", "context": [["A", ["b"]]], "supporting_facts": [["A", 0]]}


@pytest.mark.parametrize(
    ("task", "content", "said"),
    [
        ("qa_1", [], "it must hold a dict, it holds a list"),
        ("qa_1", {"version": 2}, "the field 'data' is missing"),
        ("qa_1", {"data": []}, "there is no question with an answer in it"),
        ("qa_1", {"data": [{"paragraphs": [{"context": "x", "qas": [{"question": "q", "answers": []}]}]}]},
         "there is no question"),
        ("qa_1", {"data": [{"paragraphs": [{"qas": []}]}]}, "article 1 paragraph 1: the field 'context' is missing"),
        ("qa_1", {"data": [{"paragraphs": [{"context": "x", "qas": [SQUAD_QUESTION, {"question": "q"}]}]}]},
         "article 1 paragraph 1 question 2: the field 'answers' is missing"),
        ("qa_1", {"data": ["x"]}, "article 1: this must be an object with paragraphs"),
        ("qa_2", {"data": []}, "it must hold a list, it holds a dict"),
        ("qa_2", [], "there is no question with an answer in it"),
        ("qa_2", [HOTPOT_QUESTION, {"question": "q", "answer": "a", "context": []}],
         "question 2: the field 'supporting_facts'"),
        ("qa_2", [HOTPOT_QUESTION | {"supporting_facts": [["B", 0]]}], "question 1: context must be a list of"),
        ("qa_2", [HOTPOT_QUESTION | {"context": [{"title": "A"}]}], "question 1: context must be a list of"),
    ],
)  # fmt: skip
def test_bad_question_files_are_named(tmp_path, task, content, said):
    (tmp_path / "questions.json").write_text(json.dumps(content))
    field = {"qa_1": "squad", "qa_2": "hotpotqa"}[task]
    with pytest.raises(ValueError, match=rf"questions\.json.*{re.escape(said)}"):
        Ruler(tasks={task: {}}, **{field: "questions.json"}).examples(task, BPE, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'{"data": "\xe9"}', ", line 1: this is not UTF-8 text"), (b"{\n,", ": this is no JSON .* at line 2")],
)
def test_question_files_that_are_no_json_are_named(tmp_path, content, said):
    (tmp_path / "questions.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"questions\.json{said}"):
        Ruler(tasks={"qa_1": {}}, squad="questions.json").examples("qa_1", BPE, tmp_path)


def _write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, records)))


RECORD = {"index": 0, "input": "Look.\nA is 7.\nWhat is A?", "outputs": ["7"]}


def test_every_length_has_its_own_files(tmp_path):
    benchmark = Ruler(source="official", tasks={"vt": {"lengths": [1024, 2048]}})
    _write(tmp_path / "official/1024/vt.jsonl", RECORD)
    with pytest.raises(FileNotFoundError, match=r"no vt\.jsonl at a length of 2048: put it at 2048/vt\.jsonl"):
        benchmark.examples("vt", BPE, tmp_path)
    _write(tmp_path / "official/2048/data/vt/validation.jsonl", RECORD | {"outputs": ["8"]})
    found, _ = benchmark.examples("vt", BPE, tmp_path)
    assert [(e.id, e.labels["length"], e.answers) for e in found] == [
        ("vt-1024-0000", 1024, ("7",)),
        ("vt-2048-0000", 2048, ("8",)),
    ]


def test_a_file_without_a_length_is_not_two_lengths(tmp_path):
    _write(tmp_path / "official/vt.jsonl", RECORD)
    with pytest.raises(ValueError, match="one file of vt for several lengths: ask for one length, or put each"):
        Ruler(source="official", tasks={"vt": {"lengths": [1024, 2048]}}).examples("vt", BPE, tmp_path)


def test_a_short_input_keeps_its_document(tmp_path):
    """An instruction and a short text on the same line are still separated."""
    parts = "Read the coded text. Find the words. ", "... abc ... def abc\n", "Question: Which?"
    _write(tmp_path / "official/fwe.jsonl", {"input": "".join(parts), "outputs": ["abc"]})
    ((example,), _) = Ruler(source="official", tasks={"fwe": {}}).examples("fwe", BPE, tmp_path)
    assert (example.before, example.document, example.after) == parts


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"input": "What is A?"}, "the input is one line"),
        ({"input": ""}, "the input is one line"),
        ({"input": 5}, "the field 'input' is int"),
        ({"outputs": "7"}, "the field 'outputs' is str"),
        ({"outputs": [7]}, "item 1 of the field 'outputs' is int, expected str"),
        ({"outputs": ["7", None]}, "item 2 of the field 'outputs' is null, expected str"),
        ({"outputs": [["7"]]}, "item 1 of the field 'outputs' is list, expected str"),
        ({"outputs": ["7", " "]}, "one of the outputs is blank"),
        ({"input": "Look.\nA is 7.\nWhat is \ud83d?"}, "the field 'input' has half of a surrogate pair"),
        ({"answer_prefix": 5}, "the field 'answer_prefix' is int"),
    ],
)
def test_bad_records_are_named(tmp_path, bad, said):
    _write(tmp_path / "official/vt.jsonl", RECORD, RECORD | bad)
    with pytest.raises(ValueError, match=rf"vt\.jsonl line 2: {said}"):
        Ruler(source="official", tasks={"vt": {}}).examples("vt", BPE, tmp_path)


def test_as_many_official_prompts_as_asked_for(tmp_path):
    _write(tmp_path / "official/vt.jsonl", *[RECORD] * 5)
    benchmark = Ruler(source="official", tasks={"vt": {"lengths": [1024], "prompts": 3}})
    assert [e.id for e in benchmark.examples("vt", BPE, tmp_path)[0]] == [f"vt-1024-000{n}" for n in range(3)]


TASK = "Some special numbers are hidden below.\nOne.\nThe number of x is 7.\nTwo.\nWhat is the number of x?"
OFFICIAL_TEMPLATES = {
    "meta-chat": "[INST] {} [/INST]",
    "vicuna-chat": "A chat between a curious user and an artificial intelligence assistant. USER: {} ASSISTANT:",
    "lwm-chat": "You are a helpful assistant. USER: {} ASSISTANT: ",
    "command-r-chat": "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
    "chatglm-chat": "[gMASK]sop<|user|> \n {}<|assistant|> \n ",
    "RWKV": "User: hi\n\nAssistant: Hi.\n\nUser: {}\n\nAssistant:",
    "Phi3": "<|user|>\n{}<|end|>\n<|assistant|>\n",
    "meta-llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "jamba": "<|startoftext|><|bom|><|system|> <|eom|><|bom|><|user|> {}<|eom|><|bom|><|assistant|>",
    "nemotron5-instruct": "<SPECIAL_10>System\n\n<SPECIAL_11>User\n{}\n<SPECIAL_11>Assistant\n",
    "mistral": "<s>[INST] {} [/INST]",
    "mistral, spaced": " <s> [INST] {} [/INST]",
    "gemma": "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    "qwen": "<|im_start|>system\nBe of help.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "deepseek": "<\uff5cbegin\u2581of\u2581sentence\uff5c><\uff5cUser\uff5c>{}<\uff5cAssistant\uff5c>",
    "alpaca": "### Instruction:\n{}\n\n### Response:\n",
    "llama-2": "<s>[INST] <<SYS>>\nBe of help.\n<</SYS>>\n\n{} [/INST]",
}


@pytest.mark.parametrize("template", OFFICIAL_TEMPLATES)
@pytest.mark.parametrize("older", [False, True])
def test_inputs_that_are_in_a_chat_template_are_refused(tmp_path, template, older):
    text = OFFICIAL_TEMPLATES[template].format(TASK)
    record = {"input": text, "outputs": ["7"], "answer_prefix": " The number is"}
    if older:  # the answer's beginning stands in the input
        record = {"input": text + record["answer_prefix"], "outputs": ["7"]}
    _write(tmp_path / "official/niah_single_1.jsonl", record)
    benchmark = Ruler(source="official", tasks={"niah_single_1": {}})
    with pytest.raises(ValueError, match=r"line 1: the input begins with '.*chat template.*--model_template_type base"):
        benchmark.examples("niah_single_1", BPE, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        TASK,
        "Users of this text: look.\nA is 7.\nWhat is A?",
        "<document>\nA is 7.\n</document>\nWhat is A?",
        "[1] A is 7.\nWhat is A?",
        "Read it. <|eot_id|> is only text here.\nA is 7.\nWhat is A?",
        "A chat about x.\nA is 7.\nWhat is A?",
    ],
)
def test_other_inputs_are_read(tmp_path, text):
    _write(tmp_path / "official/niah_single_1.jsonl", {"input": text, "outputs": ["7"]})
    (example,), _ = Ruler(source="official", tasks={"niah_single_1": {}}).examples("niah_single_1", BPE, tmp_path)
    assert prompt(example) == text


def test_blank_answers_of_question_files_are_left_out_or_refused(tmp_path):
    question = SQUAD_QUESTION | {"answers": [{"text": ""}, {"text": "now"}]}
    content = {"data": [{"paragraphs": [{"context": "It is now.", "qas": [question]}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(content))
    (example,), _ = Ruler(tasks={"qa_1": {}}, squad="squad.json").examples("qa_1", BPE, tmp_path)
    assert example.answers == ("now",)
    (tmp_path / "hotpot.json").write_text(json.dumps([HOTPOT_QUESTION | {"answer": " "}]))
    with pytest.raises(ValueError, match="question 1: the field 'answer' is blank"):
        Ruler(tasks={"qa_2": {}}, hotpotqa="hotpot.json").examples("qa_2", BPE, tmp_path)
