"""The explorer without a browser: choices are computed and shown, and errors are shown in the app."""

import re
from datetime import UTC, datetime
from html import unescape

import pytest
import torch
from helpers import ROOT

from ragkv import KVStore, fused_prefill, generate, precompute
from ragkv.experiment.profile import load_profile
from ragkv.explorer import Explorer, FromBenchmark, Looks, OwnText
from ragkv.explorer.choices import ALL, OWN
from ragkv.selectors import SELECTORS, ScoringSelector, get_selector

CHAIN = FromBenchmark("ruler", "vt_3", 2)
TEXT = "Late the cook wrote VAR PIGA 414. Then the poet wrote VAR REDA PIGA."


@pytest.fixture(scope="module")
def looks():
    return Looks(load_profile("smoke", ROOT / "params"), ROOT)


@pytest.fixture
def explorer():
    return Explorer("smoke", root=ROOT, prompt=("ruler", "vt_3", 3))


def text_of(widget):
    return unescape(re.sub("<[^>]+>", " ", widget.value))


def shown(explorer):
    return [explorer.answers.value, *(pane.document.value for pane in explorer.panes)]


def test_a_look_equals_a_fused_prefill(looks, tmp_path):
    subject = looks.subject("tiny-llama", CHAIN)
    model, prompt = subject.model, subject.prompt
    selector = get_selector("epic", ratio=0.3)
    look = subject.look(selector)
    store = KVStore(tmp_path)
    precompute(model, [prompt], store)
    prefill = fused_prefill(model, prompt, store, selector)
    assert torch.equal(look.selected, prefill.selected)
    assert look.text == generate(model, subject.tokenizer, prompt, prefill, max_new_tokens=subject.max_new_tokens)
    assert subject.full.text in subject.item.answers and subject.full.scores == {"string_match": 1}
    assert look.seconds.keys() == {"open", "load", "select", "compute"}
    assert min(look.seconds.values()) >= 0 < look.ttft


def test_results_are_cached(looks):
    subject = looks.subject("tiny-llama", CHAIN)
    assert looks.subject("tiny-llama", CHAIN, 64) is subject  # the profile's chunk size
    assert looks.subject("tiny-llama", CHAIN, 32) is not subject
    assert subject.look(get_selector("a3", ratio=0.3)) is subject.look(get_selector("a3", ratio=0.3))
    assert subject.full is subject.look(get_selector("full_prefill"))


def test_evidence_comes_from_the_benchmark_or_the_answer(looks):
    item = looks.subject("tiny-llama", CHAIN).item
    assert len(item.evidence) == 4 * 8  # four statements of eight tokens
    hops = looks.subject("tiny-llama", FromBenchmark("longbench", "2wikimqa", 1))
    document = hops.prompt.ids[hops.prompt.document_span.start :]
    assert {hops.tokenizer.decode(document[i]) for i in hops.item.evidence} == set(hops.item.answers)
    own = looks.subject("tiny-llama", OwnText(f"{TEXT} Today 4 cooks.", "Find VAR REDA?", " 414 "))
    place = own.prompt.document_span.start + own.item.evidence[0]
    assert len(own.item.evidence) == 1 and own.tokenizer.decode(own.prompt.ids[place]) == "414"
    assert own.full.text == "VAR REDA 414" and own.full.scores == {"string_match": 1}
    without_answer = looks.subject("tiny-llama", OwnText(TEXT, "Find VAR REDA?"))
    assert without_answer.item.evidence == () and without_answer.full.scores == {}


def test_the_ratio_changes_what_is_shown(explorer):
    before, (left, right) = shown(explorer), explorer.panes
    left.ratio.value = 0.0
    after = shown(explorer)
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]
    assert list(explorer.looks) == ["full prefill", "a3 0%", "cacheblend 15%"]
    assert "different" in text_of(explorer.answers)
    left.ratio.value = 1.0
    assert text_of(left.document).count("tokens recomputed") == len(explorer.subject.prompt.chunks)
    assert {look.text for look in explorer.looks.values()} > {explorer.subject.full.text}
    left.selector.value = right.selector.value = "full_reuse"
    assert left.ratio.disabled and left.document.value == right.document.value
    assert list(explorer.looks) == ["full prefill", "full_reuse"]


def test_every_control_changes_what_is_shown(explorer):
    choice, seen = explorer.choice, [shown(explorer)]
    for control, value in (
        (choice.number, 1),
        (choice.chunk_tokens, 32),
        (choice.layer, 2),
        (choice.task, ("longbench", "2wikimqa")),
        (choice.model, "tiny-qwen"),
        (explorer.panes[1].selector, "random"),
        (choice.task, OWN),
        (choice.own.document, TEXT),
        (choice.own.question, "Find VAR PIGA?"),
        (choice.own.answer, "PIGA"),
    ):
        control.value = value
        assert not explorer.message.value
        assert shown(explorer) not in seen
        seen.append(shown(explorer))
    assert choice.own.layout.display is None and choice.number.layout.display == "none"


def test_a_number_is_at_most_the_tasks_prompts(explorer):
    assert (explorer.choice.number.value, explorer.choice.number.max) == (3, 3)
    explorer.choice.task.value = ("needle", "single")
    assert explorer.choice.number.max == 6
    explorer.choice.number.value = 99
    assert explorer.choice.number.value == 6 and not explorer.message.value


def test_markup_is_shown_as_text(explorer):
    choice, attack = explorer.choice, "<script>alert(1)</script>"
    choice.task.value = OWN
    choice.own.document.value = f"{attack} {TEXT}"
    choice.own.answer.value = choice.own.question.value = attack
    assert attack in text_of(explorer.answers)
    choice.model.value = attack
    assert attack in text_of(explorer.message)
    everything = "".join([explorer.message.value, *shown(explorer)])
    assert "<script" not in everything


def test_unknown_words_are_reported(explorer):
    explorer.choice.task.value = OWN
    assert not explorer.message.value
    explorer.choice.own.document.value = f"Zebra crossing. {TEXT}"
    assert re.search(
        r"2 of the prompt's \d+ tokens stand for words that this model does not know", text_of(explorer.message)
    )


BAD = [
    ("question", " ", "the question is ' ': ask something"),
    ("document", "", "no text in any of the documents"),
    ("document", "\n \n", "no text in any of the documents"),
    ("document", "PK\0\1", "this is not text, it has a zero byte"),
    ("document", f"{TEXT} " * 600, "more than the model's 8192 positions: give a shorter text"),
    ("question", "Find VAR REDA? " * 3000, "more than the model's 8192 positions"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_reported_and_loses_nothing(explorer, field, value, message):
    explorer.choice.task.value = OWN
    before, control = shown(explorer), getattr(explorer.choice.own, field)
    good, control.value = control.value, value
    assert message in text_of(explorer.message)
    assert "results below are from before" in text_of(explorer.message)
    assert shown(explorer) == before
    explorer.choice.layer.value = 0  # the previous results can still be viewed
    assert shown(explorer) != before
    explorer.choice.layer.value = ALL
    control.value = good
    assert not explorer.message.value and shown(explorer) == before
    explorer.panes[0].ratio.value = 0.5
    assert shown(explorer) != before


def test_an_unknown_model_is_reported(explorer):
    before = shown(explorer)
    for name in ("tiny-lama", "no-one/no-such-model", "", "not a name!"):
        explorer.choice.model.value = name
        assert f"model {name!r} could not be loaded: it is none of the embedded ones" in text_of(explorer.message)
        assert shown(explorer) == before
    explorer.choice.model.value = "tiny-mistral"
    assert not explorer.message.value and shown(explorer) != before


def test_a_file_is_opened_or_its_error_reported(explorer):
    own = explorer.choice.own
    explorer.choice.task.value = OWN

    def give(name, content):
        file = {"name": name, "type": "", "size": len(content), "last_modified": datetime.now(UTC)}
        own.file.value = ({**file, "content": memoryview(content)},)

    give("notes.txt", TEXT.encode())
    assert own.document.value == TEXT and not explorer.message.value
    before = shown(explorer)
    give("photo.txt", b"\x89PNG\r\n\x1a\n\0")
    assert "photo.txt, line 1: this is not UTF-8 text" in text_of(explorer.message)
    give("archive.md", b"PK\0")
    assert "archive.md, line 1: this is not text" in text_of(explorer.message)
    assert own.document.value == TEXT and shown(explorer) == before


def test_a_selector_that_fails_is_reported(monkeypatch):
    class Broken(ScoringSelector):
        def scores(self, seen):
            return {}["nothing"]

    monkeypatch.setitem(SELECTORS, "broken", Broken)
    explorer = Explorer("smoke", root=ROOT)
    explorer.panes[0].selector.value = "broken"
    assert "KeyError: 'nothing'" in text_of(explorer.message)
    explorer.panes[0].selector.value = "a3"
    assert not explorer.message.value


def test_an_explorer_refuses_what_does_not_exist():
    with pytest.raises(ValueError, match="no profile 'nothing'"):
        Explorer("nothing", root=ROOT)
    with pytest.raises(ValueError, match="no task ruler: vt_9 in this profile: choose one of longbench: 2wikimqa, "):
        Explorer("smoke", root=ROOT, prompt=("ruler", "vt_9", 1))
    with pytest.raises(ValueError, match="no selector 'nothing' to look at: choose one of full_reuse, a3"):
        Explorer("smoke", root=ROOT, selectors=("a3", "nothing"))
    with pytest.raises(ValueError, match=r"there is no prompt 4 of 3"):
        Looks(load_profile("smoke", ROOT / "params"), ROOT).subject("tiny-llama", FromBenchmark("ruler", "vt_3", 3))
