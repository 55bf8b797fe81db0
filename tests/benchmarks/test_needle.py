"""Haystacks and the needles hidden in them: positions, lengths of documents, and errors."""

import math
import random
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import byte_level_bpe
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ragkv.benchmarks.haystack import fill, read_sentences, sentences, split_sentences
from ragkv.benchmarks.needle import NEEDLE, Needle, NeedleTask
from ragkv.prompt.encoding import encode
from ragkv.tiny.language import build_tokenizer

WORDS, BPE = build_tokenizer(), byte_level_bpe()
HERE = Path()
FACTS = ["At Ulmo the clocks run backwards.", "At Ulmo bread is blue!", "At Ulmo nobody owns a hat."]
QUESTION = "What is odd about Ulmo?"


def counted(characters):
    """A stand-in for a tokenizer, with one token for every so many characters."""

    class Counted:
        def __call__(self, text, **options):
            return SimpleNamespace(input_ids=[0] * math.ceil(len(text) / characters))

        unk_token_id = None

        def decode(self, ids):
            return ""

    return Counted()


TOKENIZERS = {"words": WORDS, "bpe": BPE, "characters": counted(1), "twelves": counted(12)}


def count(tokenizer, text):
    return len(encode(tokenizer, text))


def needle(haystack="generated", **parameters):
    return Needle(haystack=str(haystack), tasks={"single": parameters})


def examples(benchmark, tokenizer=WORDS, root=HERE, name="single"):
    found, left_out = benchmark.examples(name, tokenizer, root)
    assert left_out == []
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty sentences of different lengths, each with a unique word."""
    path = tmp_path_factory.mktemp("haystack")
    rng = random.Random("folder")
    every = [f"boat {'x' * (n + 1)} {' '.join(['rope'] * rng.randrange(12))}".strip() + "." for n in range(40)]
    (path / "one.txt").write_text("\n".join(every[:25]))
    (path / "two.md").write_text("  ".join(every[25:]))
    return path


# haystacks


def test_generated_sentences_read_like_prose_without_digits_and_names():
    some = list(islice(sentences("generated", HERE)(random.Random(0)), 2000))
    for sentence in some:
        assert sentence[0].isupper() and sentence[1:] == sentence[1:].lower()
        assert not any(character.isdigit() or character in "[]{}" for character in sentence)
        assert sentence[-1] in ".?" and split_sentences(sentence) == [sentence]
    assert len(set(some)) > 1800
    assert not {"ostrevalle", "newcomer", "plum", "soup", "tune"} & set(" ".join(some).lower().split())


def test_generated_sentences_depend_only_on_the_random_generator():
    first, again, other = (list(islice(sentences("generated", HERE)(random.Random(s)), 50)) for s in (1, 1, 2))
    assert first == again != other


def test_a_folder_is_read_in_order_and_repeated(tmp_path):
    (tmp_path / "b.txt").write_text("Five\n\nsix. ")
    (tmp_path / "a.md").write_bytes("\ufeffOne.  Two\n  lines! At 3.5 knots?\tFour".encode())
    (tmp_path / "c.csv").write_text("Not this.")
    (tmp_path / "d.txt").write_text(" \n")
    (tmp_path / "e.txt").mkdir()
    expected = ["One.", "Two lines!", "At 3.5 knots?", "Four", "Five six."]
    assert read_sentences(tmp_path) == expected
    streams = [sentences(tmp_path.name, tmp_path.parent)(random.Random(seed)) for seed in range(20)]
    found = [list(islice(stream, 12)) for stream in streams]
    starts = [expected.index(some[0]) for some in found]
    assert all(some == (expected * 4)[start : start + 12] for some, start in zip(found, starts, strict=True))
    assert len(set(starts)) > 1  # from anywhere on


@given(st.text(alphabet="ab.!? \n\t", max_size=60))
def test_sentences_joined_are_the_text(text):
    found = split_sentences(text)
    assert " ".join(found) == " ".join(text.split())
    assert all(sentence[-1] in ".!?" for sentence in found[:-1])
    assert not any(mark + " " in sentence for sentence in found for mark in ".!?")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "there is no haystack folder"),
        ({}, "no .txt or .md files"),
        ({"a.csv": b"One."}, "no .txt or .md files"),
        ({"a.txt": b"", "b.md": b" \n"}, "are empty"),
        ({"a.txt": b"Fine.", "b.txt": b"One.\nTwo.\n\xff"}, r"b\.txt, line 3: this is not UTF-8"),
    ],
)
def test_a_folder_without_text_is_one_clear_error(tmp_path, files, message):
    if files is not None:
        (tmp_path / "hay").mkdir()
        for name, content in files.items():
            (tmp_path / "hay" / name).write_bytes(content)
    for ask in (lambda: sentences("hay", tmp_path), lambda: examples(needle("hay"), root=tmp_path)):
        with pytest.raises(ValueError, match=message) as error:
            ask()
        assert str(tmp_path.resolve() / "hay") in str(error.value)


def test_a_file_is_no_haystack_folder(tmp_path):
    (tmp_path / "hay.txt").write_text("One.")
    with pytest.raises(ValueError, match="there is no haystack folder"):
        sentences("hay.txt", tmp_path)


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@settings(max_examples=40)
@given(seed=st.integers(0, 999), budget=st.integers(-2, 400))
def test_fill_takes_as_many_sentences_as_fit(tokenizer, seed, budget):
    every = list(islice(sentences("generated", HERE)(random.Random(seed)), 450))
    expected = 0
    while count(tokenizer, " ".join(every[: expected + 1])) <= budget:
        expected += 1
    assert fill(iter(every), tokenizer, budget) == every[:expected]


# examples


@settings(max_examples=60)
@given(
    length=st.integers(30, 200),
    depth=st.sampled_from([0, 5, 12.5, 33.3, 50, 75, 99, 100]),
    seed=st.integers(0, 99),
    hidden=st.integers(1, 3),
)
def test_needles_are_at_the_sentence_ends_nearest_to_their_depth(folder, length, depth, seed, hidden):
    facts, every = FACTS[:hidden], read_sentences(folder)
    benchmark = needle(folder, needles=facts, question=QUESTION, lengths=[length], depths=[depth], seed=seed)
    (found,) = examples(benchmark)
    parts = split_sentences(found.document)
    hay = [part for part in parts if part not in facts]
    assert [part for part in parts if part in facts] == facts

    # the hay is a run of the folder's sentences; one more would not fit
    start = every.index(hay[0]) if hay else 0
    assert hay == [every[(start + n) % len(every)] for n in range(len(hay))]
    assert count(WORDS, found.document) <= length
    if hay:
        assert count(WORDS, f"{found.document} {every[(start + len(hay)) % len(every)]}") > length

    # tokens of hay before each sentence end, and before each needle
    ends = [count(WORDS, " ".join(hay[:n])) for n in range(len(hay) + 1)]
    for number, fact in enumerate(facts):
        before = sum(part not in facts for part in parts[: parts.index(fact)])
        wanted = (depth + number * (100 - depth) / hidden) / 100 * ends[-1]
        assert abs(ends[before] - wanted) <= min(abs(end - wanted) for end in ends) + 1e-6

    assert [found.document[start:stop] for start, stop in found.evidence] == facts


@pytest.mark.parametrize("tokenizer", [WORDS, BPE], ids=["words", "bpe"])
@pytest.mark.parametrize("length", [100, 512, 1500])
def test_documents_are_as_long_as_possible(tokenizer, length):
    longest = 60 if tokenizer is BPE else 24  # tokens of a generated sentence
    for found in examples(needle(lengths=[length], depths=[0, 50, 100]), tokenizer):
        assert length - longest <= count(tokenizer, found.document) <= length


def test_depths_0_and_100_are_the_ends():
    first, middle, last = examples(needle(lengths=[300], depths=[0, 50, 100]))
    assert first.document.startswith(NEEDLE + " ") and last.document.endswith(". " + NEEDLE)
    assert 0.4 < middle.document.index(NEEDLE) / (len(middle.document) - len(NEEDLE)) < 0.6


def test_needles_at_depth_100_are_in_order_at_the_end():
    (found,) = examples(needle(needles=FACTS, question=QUESTION, lengths=[200], depths=[100]))
    assert found.document.endswith(" ".join(FACTS))


def test_a_document_may_consist_of_needles_only():
    shortest = count(WORDS, NEEDLE)
    (found,) = examples(needle(lengths=[shortest], depths=[50]))
    assert found.document == NEEDLE and found.evidence == ((0, len(NEEDLE)),)
    with pytest.raises(ValueError, match=rf"'single'.* {shortest} tokens, more than a document of {shortest - 1}\."):
        examples(needle(lengths=[shortest - 1], depths=[50]))


def test_the_grid_is_lengths_by_depths_by_prompts():
    found = examples(needle(lengths=[100, 200], depths=[0, 12.5], prompts=2))
    expected = [(length, depth, n) for length in (100, 200) for depth in (0, 12.5) for n in (0, 1)]
    assert [(e.id, e.labels["length"], e.labels["depth"]) for e in found] == [
        (f"single-{length}-{depth}-0{n}", length, depth) for length, depth, n in expected
    ]
    assert len({e.document for e in found}) == 8


def test_the_default_grid():
    benchmark = Needle(tasks={"single": {}})
    assert benchmark.sizes("single") == [(11, length) for length in (512, 1000, 2000, 4000, 8000)]
    assert len(examples(benchmark)) == 55
    assert benchmark.task("single").max_new_tokens == 64


def test_sizes_are_the_grids():
    benchmark = Needle(max_tokens=150, tasks={"single": {"lengths": [100, 200], "depths": [0, 9, 100], "prompts": 4}})
    assert benchmark.sizes("single") == [(12, 100), (12, 150)]
    assert sum(prompts for prompts, _ in benchmark.sizes("single")) == len(examples(benchmark))


@pytest.mark.parametrize("source", ["generated", "folder"])
def test_an_example_depends_only_on_its_cell_and_the_seed(folder, source):
    haystack = folder if source == "folder" else source
    grid = {"lengths": [60, 120], "depths": [0, 40, 100], "prompts": 3}
    every = {e.id: e for e in examples(needle(haystack, **grid))}
    assert {e.id: e for e in examples(needle(haystack, **grid))} == every
    (one,) = examples(needle(haystack, lengths=[120], depths=[40]))
    assert every["single-120-40-00"] == one
    (other,) = examples(needle(haystack, lengths=[120], depths=[40], seed=1))
    assert other.id == one.id and other.document != one.document


def test_a_users_texts_start_at_different_places(folder):
    found = examples(needle(folder, lengths=[60], depths=[100], prompts=20))
    assert len({e.document.split(".")[0] for e in found}) > 10


def test_the_prompts_texts():
    benchmark = Needle(
        tasks={
            "own": {"needles": FACTS, "question": "Why {this}?", "answer": "So.", "lengths": [99], "depths": [0]},
            "joined": {"needles": FACTS, "question": QUESTION, "lengths": [99], "depths": [0]},
        }
    )
    (own,), (joined,) = (examples(benchmark, name=name) for name in ("own", "joined"))
    assert own.answers == ("So.",) and joined.answers == (" ".join(FACTS),)
    assert "Why {this}?" in own.after and QUESTION in joined.after
    assert own.before.endswith("\n") and own.after.startswith("\n")
    assert own.id == "own-99-0-00"


def test_the_small_language_has_its_own_needles():
    found = examples(needle("tiny", lengths=[128, 256], depths=[0, 50, 100]))
    assert [(e.labels["length"], e.labels["depth"]) for e in found] == [
        (n, d) for n in (128, 256) for d in (0, 50, 100)
    ]
    for e in found:
        length, ((start, stop),) = e.labels["length"], e.evidence
        assert count(WORDS, e.text) <= length
        assert e.answers[0] in e.text[start:stop]
        place = start / (len(e.text) - (stop - start))
        assert abs(place - e.labels["depth"] / 100) < 0.1
    assert found == examples(needle("tiny", lengths=[128, 256], depths=[0, 50, 100]))


# scores


def test_scores_are_rouge_1_first_and_overlap():
    score = needle().task("single").scores
    assert list(score(NEEDLE, [NEEDLE], ())) == ["rouge1_f", "token_overlap"]
    assert score(NEEDLE, [NEEDLE], ()) == {"rouge1_f": 1, "token_overlap": 1}
    assert score("Quite unknown.", [NEEDLE], ()) == {"rouge1_f": 0, "token_overlap": 0}
    # two of three words are right, and two of four are found: precision 2/3, recall 1/2
    assert score("green paper boats", ["paper boats sail north"], ())["rouge1_f"] == pytest.approx(4 / 7)


# what is refused


@pytest.mark.parametrize(
    ("parameters", "where", "message"),
    [
        ({"depths": [0, 101]}, ("depths", 1), "less than or equal to 100"),
        ({"depths": [-1]}, ("depths", 0), "greater than or equal to 0"),
        ({"depths": []}, ("depths",), "at least 1 item"),
        ({"lengths": []}, ("lengths",), "at least 1 item"),
        ({"lengths": [0]}, ("lengths", 0), "greater than or equal to 1"),
        ({"lengths": [50, 50]}, ("lengths",), "50 given more than once"),
        ({"depths": [0, 10, 10.0]}, ("depths",), "10 given more than once"),
        ({"needles": [], "question": "?"}, ("needles",), "at least 1 item"),
        ({"needles": ["One.", " "], "question": "?"}, ("needles", 1), "at least 1 character"),
        ({"question": ""}, ("question",), "at least 1 character"),
        ({"prompts": 0}, ("prompts",), "greater than or equal to 1"),
        ({"needles": ["One."]}, (), "need a question of their own"),
        ({"depth": 5}, ("depth",), "not permitted"),
    ],
)
def test_parameters_out_of_range_are_named(parameters, where, message):
    with pytest.raises(ValidationError) as error:
        NeedleTask(**parameters)
    (problem,) = error.value.errors()
    assert problem["loc"] == where and message in problem["msg"]


def test_there_is_at_least_one_task_and_unknown_ones_are_listed():
    with pytest.raises(ValidationError, match="at least 1 item"):
        Needle(tasks={})
    for ask in (needle().task, needle().sizes, lambda name: examples(needle(), name=name)):
        with pytest.raises(ValueError, match="unknown needle task 'other': choose one of single"):
            ask("other")
