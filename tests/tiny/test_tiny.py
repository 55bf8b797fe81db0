"""The small language, its documents, their training, and the embedded models."""

import re
from functools import lru_cache
from random import Random

import pytest
import torch
from helpers import plain
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from ragkv import Prompt, chat_parts, decode, fused_prefill, load_model
from ragkv.benchmarks.tiny import RULER_TASKS, longbench_records, needle_example, ruler_example
from ragkv.models.load import embedded_models
from ragkv.prompt.templates import encode
from ragkv.selectors import get_selector
from ragkv.tiny import language, train
from ragkv.tiny.corpus import SENTENCE_TOKENS, make_document

tokenizer = lru_cache(language.build_tokenizer)


def test_every_word_is_one_token():
    found = [tokenizer()(word, add_special_tokens=False).input_ids for word in language.VOCABULARY]
    assert found == [[i] for i in range(len(language.VOCABULARY))]


def test_no_word_has_two_roles():
    parts = [
        "SPECIAL",
        "GLUE",
        "TIMES",
        "PEOPLE",
        "VERBS",
        "ADJECTIVES",
        "NOUNS",
        "VARIABLES",
        "CITIES",
        "FILMS",
        "WHO",
        "NUMBERS",
        "HEADERS",
    ]
    every = [word for part in parts for word in getattr(language, part) if word not in language.PUNCTUATION]
    assert sorted(every + language.PUNCTUATION) == sorted(language.VOCABULARY)
    assert len(language.VOCABULARY) <= train.SHAPE["vocab_size"]


@st.composite
def documents(draw):
    needles = draw(st.integers(0, 5))
    options = {
        "chains": draw(st.integers(0, 4)),
        "hops": draw(st.integers(0, 3)),
        "needles": needles,
        "together": draw(st.integers(1, 3)),
        "films": draw(st.integers(0, 4)),
        "single_hop": draw(st.booleans()),
    }
    statements = options["chains"] * (options["hops"] + 1) + needles + 2 * options["films"]
    sentences = max(1, statements + draw(st.integers(0, 30)))
    return draw(st.integers(0, 999)), sentences, options


def make(case):
    seed, sentences, options = case
    return make_document(Random(seed), sentences, **options)


@given(documents())
def test_texts_come_back_from_their_tokens(case):
    document = make(case)
    ids = encode(tokenizer(), document.text)
    assert len(ids) == SENTENCE_TOKENS * len(document.sentences)
    assert [tokenizer().convert_ids_to_tokens(i) for i in ids] == [
        word for sentence in document.sentences for word in sentence
    ]
    assert tokenizer().decode(ids) == document.text
    assert encode(tokenizer(), tokenizer().decode(ids)) == ids
    for question in document.questions:
        text = f"{question.text} {question.completion}"
        assert tokenizer().decode(encode(tokenizer(), text)) == text
        assert language.WORD_IDS["<unk>"] not in encode(tokenizer(), text)


class Reader:
    """Reads a document's text with patterns and follows its statements, in order and one by one."""

    def __init__(self, text):
        self.facts = {}
        for match in re.finditer(r"(?:wrote VAR|keeps KEY|visited HOME|praised FILM) (\w+) (\w+)\.", text):
            kind = match[0].split()[1]
            assert (kind, match[1]) not in self.facts, "said twice"
            if (kind == "VAR" and not match[2].isdigit()) or kind == "FILM":
                known = ("VAR", match[2]) if kind == "VAR" else ("HOME", match[2])
                assert known in self.facts, "used before it was introduced"
            self.facts[kind, match[1]] = match[2]

    def answer(self, subject):
        """``VAR A``, ``KEY A``, ``FILM A``, ``HOME A`` or ``HOME FILM A``."""
        *kinds, name = subject.split()
        for kind in reversed(kinds):
            name = self.facts[kind, name]
            while kind == "VAR" and not name.isdigit():
                name = self.facts[kind, name]
        return name


SUBJECT = re.compile(r"(?:VAR|KEY|HOME FILM|FILM|HOME) \w+")


@given(documents())
def test_answers_follow_from_the_document(case):
    document, (_, sentences, options) = make(case), case
    reader = Reader(document.text)
    for question in document.questions:
        assert question.text.startswith("Find ")
        assert question.text.endswith("?")
        subjects = SUBJECT.findall(question.text)
        values = [reader.answer(subject) for subject in subjects]
        assert list(question.answers) == values
        said = " ".join(f"{subject} {value}" for subject, value in zip(subjects, values, strict=True))
        assert f"{question.answer_prefix} {question.completion}" == said
    asked = [subject for question in document.questions for subject in SUBJECT.findall(question.text)]
    assert len(set(asked)) == len(asked)
    together = options["needles"] // options["together"]
    assert len(document.questions) == options["chains"] + together + options["films"]
    assert len(document.sentences) == sentences
    statements = options["chains"] * (options["hops"] + 1) + options["needles"] + 2 * options["films"]
    assert len(reader.facts) == statements
    if not options["single_hop"]:
        assert all(len(chain) == options["hops"] for chain in (aliases(reader, q) for q in asked if q[:3] == "VAR"))


def aliases(reader, subject):
    """The names between a variable and its value."""
    name, names = reader.facts[tuple(subject.split())], []
    while not name.isdigit():
        names.append(name)
        name = reader.facts["VAR", name]
    return names


@given(documents())
def test_the_evidence_is_enough_and_no_more(case):
    """The answer follows from these sentences alone, and they are the statements that were asked about."""
    document = make(case)
    for question in document.questions:
        evidence = [document.sentences[i] for i in question.evidence]
        assert list(question.evidence) == sorted(set(question.evidence))
        reader = Reader(" ".join(" ".join(sentence).replace(" .", ".") for sentence in evidence))
        assert [reader.answer(subject) for subject in SUBJECT.findall(question.text)] == list(question.answers)
        assert len(reader.facts) == len(evidence)


@given(documents())
def test_the_same_seed_makes_the_same_document(case):
    seed, sentences, options = case
    assert make(case) == make(case)
    assert make((seed + 1, sentences, options)) != make(case)


@pytest.mark.parametrize("options", [{"chains": 3, "hops": 2}, {"needles": 9}, {"films": 5}])
def test_too_many_statements_are_refused(options):
    statements = {"chains": 9, "needles": 9, "films": 10}[next(iter(options))]
    make_document(Random(0), statements, **options)
    with pytest.raises(ValueError, match=f"{statements} statements do not fit into {statements - 1} sentences"):
        make_document(Random(0), statements - 1, **options)


@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 9), st.sampled_from([(1, 1), (3, 1), (1, 4)]))
def test_keys_with_several_values_and_passages(seed, keys, size, form):
    """Read back by patterns: every value stands behind its key, in the order in which it is asked for."""
    values_per_key, numbers = form
    document = make_document(
        Random(seed), 30, needles=keys, values_per_key=values_per_key, numbers_per_value=numbers, per_passage=size
    )
    said = re.findall(r"KEY (\w+)((?: \d+)+)\.", document.text)
    assert len(said) == keys * values_per_key
    for question in document.questions:
        key = question.answer_prefix.split()[1]
        assert list(question.answers) == [value.strip() for name, value in said if name == key]
        assert all(len(answer.split()) == numbers for answer in question.answers)
        evidence = " ".join(" ".join(document.sentences[i]) for i in question.evidence)
        assert evidence.count(f"KEY {key} ") == values_per_key
    headers = [i for i, sentence in enumerate(document.sentences) if sentence[0] == "Passage"]
    assert headers == list(range(0, len(document.sentences), size + 1))
    assert re.findall(r"Passage (\d+):", document.text) == [str(n) for n in range(1, len(headers) + 1)]


def test_noise_is_one_sentence_again_and_again():
    document = make_document(Random(0), 20, needles=2, noise=True)
    assert len({" ".join(sentence) for sentence in document.sentences}) == 3


def test_more_keys_than_names_are_refused():
    with pytest.raises(ValueError, match=f"there are names for {len(language.CITIES)}"):
        make_document(Random(0), 400, needles=len(language.CITIES) + 1)


@pytest.mark.parametrize("name", RULER_TASKS)
def test_ruler_tasks_in_the_small_language(name):
    first, again = (ruler_example(name, 512, 0, 3) for _ in range(2))
    assert first == again
    assert ruler_example(name, 512, 1, 3).document != first.document
    text = first.before + first.text + first.after + first.answer_prefix + " " + " ".join(first.answers)
    assert 512 - 64 <= len(encode(tokenizer(), text)) <= 512
    assert language.WORD_IDS["<unk>"] not in encode(tokenizer(), text)
    evidence = " ".join(first.document[start:stop] for start, stop in first.evidence)
    assert all(re.search(rf"\b{answer}\b", evidence) for answer in first.answers)
    with pytest.raises(ValueError, match=rf"{name} at a length of 64 tokens"):
        ruler_example(name, 64, 0, 0)


@pytest.mark.parametrize("depth", [0, 25, 100])
def test_a_needle_stands_at_its_depth(depth):
    example = needle_example("single", 512, depth, 0, 0)
    (start, stop) = example.evidence[0]
    assert example.answers[0] in example.document[start:stop]
    assert start / (len(example.document) - (stop - start)) == pytest.approx(depth / 100, abs=0.03)
    assert len(encode(tokenizer(), example.document)) == 512


def test_two_hop_records_have_longbenchs_format():
    record, *rest = longbench_records(3, 512, 0)
    fields = ["_id", "all_classes", "answers", "context", "dataset", "input", "language", "length"]
    assert sorted(record) == fields
    assert longbench_records(1, 512, 0) == [record]
    reader, film = Reader(record["context"]), record["input"].split()[-1]
    assert reader.answer(f"HOME FILM {film}") == record["answers"][0]
    assert record["context"].startswith("Passage 1: ")
    assert len(rest) == 2


def questions(task, count):
    """Prompts over documents of 64 sentences that training has not seen, and the answers."""
    options = {"vt_1": {"chains": 4, "hops": 1}, "needle": {"needles": 8}}[task]
    for seed in range(count):
        document = make_document(Random(f"test/{task}/{seed}"), 64, **options)
        question = document.questions[0]
        prefix, asked = chat_parts(tokenizer(), "Read the notes below.", question.text, question.answer_prefix)
        ids = encode(tokenizer(), document.text)
        yield Prompt(prefix, [ids[:256], ids[256:]], asked), question.completion


def test_there_are_three_embedded_models():
    assert embedded_models() == ["tiny-llama", "tiny-mistral", "tiny-qwen"]


@pytest.mark.parametrize("task", ["vt_1", "needle"])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-mistral", "tiny-qwen"])
def test_embedded_models_answer(name, task):
    model, its_tokenizer = load_model(name, device="cpu")
    assert its_tokenizer.get_vocab() == tokenizer().get_vocab()
    assert model.dtype == torch.float32
    right = 0
    for prompt, completion in questions(task, 8):
        prefill = fused_prefill(model, prompt, None, get_selector("full_prefill"))
        ids = decode(model, prefill, max_new_tokens=4).ids
        right += its_tokenizer.decode(ids, skip_special_tokens=True).strip() == completion
    assert right >= 7


def test_without_the_document_they_do_not_answer():
    """The answers come from the documents, not from the questions."""
    model, _ = load_model("tiny-llama", device="cpu")
    right = 0
    for prompt, completion in questions("needle", 20):
        logits, _ = plain(model, Prompt(prompt.prefix, [], prompt.question))
        right += int(logits.argmax()) == language.WORD_IDS[completion]
    assert right <= 3


STAGES = (train.Stage(0.5, 4, 1, copies=0.5), train.Stage(0.5, 8, 2))


@pytest.fixture
def small(monkeypatch):
    """Training of a model with one small layer."""
    shape = {
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    monkeypatch.setitem(train.FAMILIES, "llama", lambda: LlamaConfig(**train.SHAPE | shape | {"head_dim": 16}))


@pytest.mark.usefixtures("small")
def test_so_many_steps_give_the_same_model():
    models = [train.train("llama", device="cpu", steps=4, tokens=512, seed=seed, stages=STAGES) for seed in (3, 3, 4)]
    weights = [torch.cat([p.detach().view(-1) for p in model.parameters()]) for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    untrained = train.new_model("llama", 3)
    assert not torch.equal(weights[0], torch.cat([p.detach().view(-1) for p in untrained.parameters()]))


@pytest.mark.usefixtures("small")
def test_what_is_trained_can_be_loaded(tmp_path):
    trained = train.train("llama", device="cpu", steps=2, tokens=256, out=tmp_path, stages=STAGES)
    model, its_tokenizer = load_model(tmp_path, device="cpu", dtype="bfloat16")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))
    assert its_tokenizer.get_vocab() == language.WORD_IDS


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("seed", range(5))
def test_targets_are_the_tokens_themselves(stage, seed):
    ids, answers, document = train.document_example(Random(seed), stage)
    assert len(ids) == len(answers)
    assert ids[: len(document)] == document
    assert [(t, i) for t, i in zip(answers, ids, strict=True) if t not in (train.IGNORE, i)] == []
    words = language.WORD_IDS
    assert answers.count(words["</s>"]) == ids.count(words["<|assistant|>"])
    copied, targets = train.copy_example(Random(seed), 200)
    assert len(copied) == len(targets) == 200
    for place, target in enumerate(targets):
        if target != train.IGNORE:
            assert target == copied[place]
            assert copied[place - 1 : place + 1] in [copied[i : i + 2] for i in range(place - 1)]


@pytest.mark.parametrize("seed", [0, 1])
def test_batches_are_endless_and_the_same_for_a_seed(seed):
    first, second = (iter(train.Batches(STAGES[0], 512, seed)) for _ in range(2))
    length = train.Batches(STAGES[0], 512, seed).length
    for _ in range(3):
        batch = next(first)
        assert torch.equal(batch, next(second))
        assert batch.shape == (3, 512 // length, length)
        assert (batch[0] >= 0).all()
    assert not torch.equal(batch, next(iter(train.Batches(STAGES[0], 512, seed + 2))))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("steps", [1, 3, 10, 50])
def test_exactly_so_many_steps_are_made(steps, monkeypatch):
    made = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: made.append(1))
    stages = tuple(train.Stage(stage.share, 8, 0) for stage in train.STAGES)
    train.train("llama", device="cpu", steps=steps, tokens=16, stages=stages)
    assert len(made) == steps
