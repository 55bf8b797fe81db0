"""Fidelity in an evaluation: against PyTorch's own divergence of plain forwards, and without a change of any answer."""

import json

import pandas as pd
import pytest
import torch
from helpers import fuse, make_model, random_prompt
from profiles import PROFILE, forget, run, without_times, write_profile
from torch.nn.functional import cross_entropy, kl_div

from ragkv import decode, fused_prefill
from ragkv.experiment import prompt_loop
from ragkv.experiment.evaluation import evaluate
from ragkv.experiment.fidelity import Reference
from ragkv.fusion.cache import cache_argument, fork
from ragkv.results.comparison import summarise
from ragkv.results.fidelity import FIDELITY, fidelity_by_method
from ragkv.results.partial import append_rows, rows_so_far
from ragkv.selectors import get_selector

TASK = ("ruler", "vt_1")
SNAPKV = {"name": "snapkv", "capacity_ratio": 0.3}


@torch.inference_mode()
def greedy(model, ids, steps):
    """The answer of a model that reads prompt and answer anew for every token; with the token that ends it."""
    answer = []
    while len(answer) < steps:
        answer.append(int(model(input_ids=torch.tensor([[*ids, *answer]])).logits[0, -1].argmax()))
        if answer[-1] == model.generation_config.eos_token_id:
            break
    return answer


@torch.inference_mode()
def along(model, prefill, answer):
    """The logits that predict an answer, from a prefill, one token after the other."""
    cache, logits = fork(prefill.cache), [prefill.logits[0]]
    for place, token in enumerate(answer[:-1], prefill.tokens):
        inputs = {"input_ids": torch.tensor([[token]]), "position_ids": torch.tensor([[place]])}
        logits.append(model(**inputs, use_cache=True, **{cache_argument(): cache}).logits[0, -1])
    return torch.stack(logits)


@torch.inference_mode()
def test_the_columns_of_every_row_by_another_way(ready, tiny):
    model, _ = tiny
    rows = run(ready, tiny)
    assert set(FIDELITY) <= set(rows)
    for item in ready.items(*TASK):
        ids = item.prompt.ids
        answer = greedy(model, ids, steps=4)
        full = model(input_ids=torch.tensor([[*ids, *answer]])).logits[0, len(ids) - 1 : -1].double()
        for row in rows[rows["prompt"] == item.id].itertuples():
            options = {} if row.method.startswith("full") else {"ratio": row.ratio}
            prefill = fused_prefill(model, item.prompt, ready.store(), get_selector(row.selector, **options))
            method = along(model, prefill, answer).double()
            distances = kl_div(method.log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="none").sum(-1)
            same = (full.argmax(-1) == method.argmax(-1)).double()
            nll = cross_entropy(method, torch.tensor(answer))
            expected = [distances[0], distances.mean(), same[0], same.mean(), nll]
            found = [getattr(row, name) for name in FIDELITY]
            assert found == pytest.approx([float(value) for value in expected], rel=1e-3, abs=1e-6)
    means = rows.groupby(["method", "ratio"])["kl"].mean()
    assert means["full_prefill", 1.0] == 0
    assert means["a3", 1.0] < 1e-6 < means["a3", 0.1] < means["full_reuse", 0.0]


def test_an_answer_that_is_not_decoded_again_is_what_decoding_gives(tmp_path, tiny, monkeypatch):
    methods = [
        *PROFILE["methods"],
        {"selector": "a3", "label": "a3 + snapkv", "eviction": SNAPKV},
        {"selector": "full_prefill", "label": "full_prefill + snapkv", "eviction": SNAPKV},
    ]
    experiment = write_profile(tmp_path, methods=methods)
    experiment.chunk(tiny[1])
    experiment.precompute(tiny[0])
    short = run(experiment, tiny)
    monkeypatch.setattr(Reference, "is_greedy_answer", lambda reference, logits: False)
    decoded = run(experiment, tiny)
    pd.testing.assert_frame_equal(without_times(short), without_times(decoded))
    skipped = short["tpot"].isna() & decoded["tpot"].notna()
    measured = short["method"].str.endswith("snapkv") | (short["method"] == "full_prefill")
    assert skipped.any()
    assert not skipped[measured].any()
    assert (short.loc[skipped, "agreement"] == 1).all()
    assert (short.loc[short["method"] == "full_prefill", "kl"] == 0).all()
    assert (short.loc[short["method"] == "full_prefill + snapkv", "kl_first"] < 1e-9).all()  # evicted after it
    assert (short.loc[short["method"] == "full_prefill + snapkv", "kl"] > 0).any()


def test_full_prefill_may_stand_anywhere(ready, tiny):
    first = without_times(run(ready, tiny))
    order = [2, 1, 0]
    experiment = write_profile(ready.root, methods=[PROFILE["methods"][place] for place in order])
    other = without_times(run(experiment, tiny))
    assert other["method"].tolist()[:4] == ["a3", "a3", "full_reuse", "full_prefill"]
    key = ["prompt", "method", "ratio"]
    pd.testing.assert_frame_equal(*(rows.set_index(key).sort_index() for rows in (first, other)))


def test_without_full_prefill_there_is_nothing_to_compare_with(ready, tiny):
    experiment = write_profile(ready.root, methods=PROFILE["methods"][1:])
    rows = run(experiment, tiny)
    assert not set(FIDELITY) & set(rows)
    assert rows["tpot"].notna().any()
    assert list(fidelity_by_method(rows)) == ["method", "ratio", "share"]


def test_a_full_prefill_that_only_evicts_is_no_reference(ready, tiny):
    evicting = {"selector": "full_prefill", "label": "full_prefill + snapkv", "eviction": SNAPKV}
    rows = run(write_profile(ready.root, methods=[evicting, {"selector": "a3"}]), tiny)
    assert not set(FIDELITY) & set(rows)


@pytest.mark.parametrize("lost", ["a3", "full_prefill"])
def test_the_logits_of_a_known_full_prefill_are_computed_again(ready, tiny, monkeypatch, lost):
    """Once per prompt for all methods whose rows are missing, and the rows are those of an uninterrupted run."""
    whole = without_times(run(ready, tiny))
    identity = json.loads(ready.outputs.summary(*TASK).read_text())["identity"]
    (path,) = ready.outputs.partials(*TASK, identity)
    known = [row for row in rows_so_far(path) if row["method"] != lost]
    forget(ready, "vt_1")
    append_rows(path, known)
    computed, real = [], prompt_loop.fused_prefill
    monkeypatch.setattr(prompt_loop, "fused_prefill", lambda *args, **kw: computed.append(args[3]) or real(*args, **kw))
    again = evaluate(ready, *TASK, *tiny, progress=False)
    pd.testing.assert_frame_equal(without_times(again), whole)
    reuse = [selector for selector in computed if selector.reuses]
    assert len(computed) - len(reuse) == 3 + 1  # one prefill warms up
    assert len(reuse) == (3 * 2 if lost == "a3" else 0)


def test_the_token_that_ends_an_answer_belongs_to_it(rng):
    """A method that would go on is not said to give the same answer; an answer of no words has one token."""
    model, prompt = make_model("llama"), random_prompt(rng)
    prefill = fuse(model, prompt, "full_prefill")
    model.generation_config.eos_token_id = None
    ids = decode(model, prefill, max_new_tokens=6).ids
    place = next(i for i in range(2, 6) if ids[i] not in ids[:i])
    model.generation_config.eos_token_id = ids[place]
    reference = Reference.of(model, prefill, decode(model, prefill, max_new_tokens=6))
    assert (reference.answer, reference.ids) == (ids[:place], ids[: place + 1])
    assert reference.is_greedy_answer(reference.logits)
    goes_on = reference.logits.clone()
    goes_on[-1, ids[place]] = goes_on[-1].min()
    assert not reference.is_greedy_answer(goes_on)
    assert reference.fidelity(goes_on)["agreement"] == pytest.approx(place / (place + 1))

    model.generation_config.eos_token_id = ids[0]
    nothing = Reference.of(model, prefill, decode(model, prefill, max_new_tokens=6))
    assert (nothing.answer, nothing.ids) == ([], ids[:1])
    assert nothing.fidelity(nothing.logits)["nll"] == pytest.approx(
        float(cross_entropy(prefill.logits, torch.tensor(ids[:1])))
    )


def test_the_first_token_is_timed_before_anything_is_compared(ready, tiny, monkeypatch):
    """TTFT ends where the comparison begins: with a clock that only comparing moves, all times are zero."""
    now, real = [0.0], prompt_loop.forced_logits

    def compare(*args):
        now[0] += 1
        return real(*args)

    monkeypatch.setattr(prompt_loop, "forced_logits", compare)
    monkeypatch.setattr(prompt_loop, "perf_counter", lambda: now[0])
    rows = run(ready, tiny)
    assert now[0] == 3 * 3  # every method but the full prefill
    assert (rows["ttft"] == 0).all()


def test_what_is_written_beside_the_rows(ready, tiny):
    rows = run(ready, tiny)

    def not_json(name):
        raise AssertionError(f"{name} is not JSON")

    written = json.loads(ready.outputs.summary(*TASK).read_text(), parse_constant=not_json)
    for name, table in (("summary", summarise(rows)), ("fidelity", fidelity_by_method(rows))):
        pd.testing.assert_frame_equal(pd.DataFrame(written[name]).astype(table.dtypes), table)


def test_tables_without_these_columns_are_computed_again(ready, tiny, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("ragkv.experiment.methods.COLUMNS", "of an older version")
        evaluate(ready, *TASK, *tiny, progress=False)
    computed, real = [], prompt_loop.fused_prefill
    monkeypatch.setattr(prompt_loop, "fused_prefill", lambda *args, **kw: computed.append(1) or real(*args, **kw))
    evaluate(ready, *TASK, *tiny, progress=False)
    assert len(computed) == 1 + 3 * 4
