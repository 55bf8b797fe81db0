"""The explorer without a browser: choices are computed and shown, and errors are shown in the app."""

import re
from datetime import UTC, datetime
from html import unescape
from threading import Semaphore
from time import monotonic, sleep

import pytest
import torch
from helpers import ROOT

from ragkv import KVStore, fused_prefill, generate, precompute
from ragkv.experiment.profile import load_profile
from ragkv.explorer import Explorer, FromBenchmark, Looks, OwnText
from ragkv.explorer.background import Cancelled, Job
from ragkv.explorer.choices import ALL, OWN
from ragkv.selectors import SELECTORS, ScoringSelector, get_selector
from ragkv.store import precompute as precompute_module

CHAIN = FromBenchmark("ruler", "vt_3", 2)
TEXT = "Late the cook wrote VAR PIGA 414. Then the poet wrote VAR REDA PIGA."


@pytest.fixture(scope="module")
def looks():
    return Looks(load_profile("smoke", ROOT / "params"), ROOT)


class Waiting(Job):
    """A job that is done when it has been begun."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.wait()


@pytest.fixture
def explorer(monkeypatch):
    monkeypatch.setattr("ragkv.explorer.app.Job", Waiting)
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


def test_own_text_has_no_expected_answer_unless_it_is_given(explorer):
    explorer.choice.task.value = OWN
    assert "expected" not in text_of(explorer.answers)
    assert explorer.subject.full.scores == {} and explorer.subject.item.evidence == ()
    explorer.choice.own.answer.value = "414"
    assert re.search(r"expected: +414", text_of(explorer.answers))


@pytest.fixture
def held(monkeypatch):
    """Lets chunks be read one by one: the number of those that were begun, and what lets the next ones pass."""
    begun, passes = [], Semaphore(0)
    read = precompute_module.precompute

    def slow(model, prompts, store):
        begun.append(prompts)
        assert passes.acquire(timeout=60)
        return read(model, prompts, store)

    monkeypatch.setattr("ragkv.explorer.looks.precompute", slow)
    return begun, passes


def until(condition):
    deadline = monotonic() + 60
    while not condition():
        assert monotonic() < deadline
        sleep(0.01)


def test_a_long_text_shows_progress_and_can_be_cancelled(held):
    begun, passes = held
    passes.release(1000)
    explorer = Explorer("smoke", root=ROOT, prompt=("ruler", "vt_3", 3))
    before = shown(explorer)
    while passes.acquire(blocking=False):
        pass
    begun.clear()
    explorer.choice.chunk_tokens.value = 32
    until(lambda: len(begun) == 1)
    passes.release(2)
    until(lambda: len(begun) == 3)
    running = explorer.running
    chunks = len(explorer.subject.prompt.document_span) // 32
    assert running.layout.display is None and running.what.value == f"reading chunks, 3 of {chunks}"
    assert running.bar.value == pytest.approx(2 / chunks)
    running.cancel.click()
    passes.release()
    explorer.wait()
    assert len(begun) == 3 and running.layout.display == "none"
    assert "Cancelled. The results below are from before this change." in text_of(explorer.message)
    assert shown(explorer) == before
    passes.release(1000)
    explorer.choice.layer.value = 1  # the app still works
    assert shown(explorer) != before


def test_a_later_change_takes_the_place_of_one_that_is_running(held):
    begun, passes = held
    passes.release(1000)
    explorer = Explorer("smoke", root=ROOT, prompt=("ruler", "vt_3", 3))
    while passes.acquire(blocking=False):
        pass
    begun.clear()
    explorer.choice.chunk_tokens.value = 32
    until(lambda: len(begun) == 1)
    explorer.choice.chunk_tokens.value = 16
    passes.release(1000)
    explorer.wait()
    assert max(map(len, explorer.subject.prompt.chunks)) == 16
    assert not explorer.message.value and explorer.running.layout.display == "none"
    assert sum(len(chunk) for prompts in begun for prompt in prompts for chunk in prompt.chunks) == 32 + len(
        explorer.subject.prompt.document_span
    )


def test_cancelled_work_goes_on_where_it_stopped(held):
    """The chunks that were read are not read again."""
    begun, passes = held
    passes.release(1000)
    looks = Looks(load_profile("smoke", ROOT / "params"), ROOT)

    def stop(what, done, total):
        if (what, done) == ("reading chunks", 3):
            raise Cancelled

    with pytest.raises(Cancelled):
        looks.subject("tiny-llama", CHAIN, progress=stop)
    subject = looks.subject("tiny-llama", CHAIN)
    stored = [precompute_module.precompute(subject.model, prompts, subject.store).written for prompts in begun]
    assert len(begun) == 3 + len(subject.prompt.chunks) and set(stored) == {0}


def test_a_selector_that_fails_is_reported(monkeypatch):
    monkeypatch.setattr("ragkv.explorer.app.Job", Waiting)

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
