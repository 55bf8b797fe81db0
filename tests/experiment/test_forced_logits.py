"""Logits along a known answer: against the model's own forward, and token by token behind an eviction."""

import pytest
import torch
from helpers import BOS, fuse, memory_store, random_ids, random_prompt, relative_error

from ragkv import decode, fused_prefill, precompute
from ragkv.eviction import get_eviction
from ragkv.experiment.fidelity import forced_logits
from ragkv.fusion.cache import cache_argument, fork
from ragkv.selectors import get_selector


@torch.inference_mode()
def whole(model, prompt, answer):
    """One forward over prompt and answer: the logits that predict the answer."""
    ids = torch.tensor([[*prompt.ids, *answer]])
    return model(input_ids=ids).logits[0, len(prompt.ids) - 1 : -1]


@torch.inference_mode()
def one_by_one(model, prefill, answer):
    """The same from a prefill, a token at a time."""
    cache, logits = fork(prefill.cache), [prefill.logits]
    for place, token in enumerate(answer[:-1], prefill.tokens):
        inputs = {"input_ids": torch.tensor([[token]]), "position_ids": torch.tensor([[place]])}
        logits.append(model(**inputs, use_cache=True, **{cache_argument(): cache}).logits[0])
    return torch.cat(logits)


@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize(("selector", "options"), [("full_prefill", {}), ("a3", {"ratio": 1.0})])
def test_they_are_those_of_a_full_forward(model, rng, selector, options, length):
    prompt, answer = random_prompt(rng), random_ids(rng, length)
    prefill = fuse(model, prompt, selector, **options)
    assert relative_error(forced_logits(model, prefill, answer), whole(model, prompt, answer)) < 1e-5


@pytest.mark.parametrize("selector", ["full_reuse", "a3"])
def test_they_are_those_of_decoding(model, rng, selector):
    prompt, answer = random_prompt(rng), random_ids(rng, 7)
    prefill = fuse(model, prompt, selector)
    found = forced_logits(model, prefill, answer)
    assert relative_error(found, one_by_one(model, prefill, answer)) < 1e-5
    assert relative_error(found, whole(model, prompt, answer)) > 1e-3  # reuse is not exact
    greedy = decode(model, prefill, max_new_tokens=7).ids
    chosen = forced_logits(model, prefill, greedy).argmax(-1)
    assert chosen.tolist() == greedy


@pytest.mark.parametrize("name", ["streaming", "snapkv"])
def test_behind_an_eviction_the_answer_stands_behind_the_whole_prompt(model, rng, name):
    prompt, answer, store = random_prompt(rng, chunks=(40, 30, 20)), random_ids(rng, 6), memory_store()
    precompute(model, [prompt], store)
    eviction = get_eviction(name, capacity_ratio=0.4)
    prefill = fused_prefill(model, prompt, store, get_selector("a3"), eviction=eviction)
    kept = prefill.cache.get_seq_length()
    assert kept < prefill.tokens
    found = forced_logits(model, prefill, answer)
    assert relative_error(found, one_by_one(model, prefill, answer)) < 1e-5

    shifted = fork(prefill.cache)  # what a forward without positions would do
    with torch.inference_mode():
        wrong = model(input_ids=torch.tensor([answer[:-1]]), use_cache=True, **{cache_argument(): shifted}).logits[0]
    assert relative_error(found[1:], wrong) > 1e-3


def test_the_prefill_stays_as_it_was(model, rng):
    prompt, answer = random_prompt(rng), random_ids(rng, 5)
    prefill = fuse(model, prompt, "a3")
    before = [(layer.keys.clone(), layer.values.clone()) for layer in prefill.cache.layers]
    first = forced_logits(model, prefill, answer)
    for layer, (keys, values) in zip(prefill.cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)
    assert torch.equal(forced_logits(model, prefill, answer), first)


def test_an_answer_has_at_least_one_token(llama, rng):
    prefill = fuse(llama, random_prompt(rng), "full_prefill")
    assert torch.equal(forced_logits(llama, prefill, [BOS]), prefill.logits)
    with pytest.raises(ValueError, match="the answer has no tokens"):
        forced_logits(llama, prefill, [])
