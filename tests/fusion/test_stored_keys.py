"""A^3 on stored keys: the question alone goes up to the selection layer, over what is reused."""

import pytest
import torch
from helpers import FAMILIES, fuse, make_model, memory_store, random_prompt
from torch.nn.functional import avg_pool1d
from transformers import DynamicCache

from ragkv import fused_prefill, precompute
from ragkv.fusion.cache import cache_argument
from ragkv.fusion.workspace import Workspace
from ragkv.models import decoder
from ragkv.models.rotary import Rotary
from ragkv.selectors import get_selector


def expected(model, prompt, layer, count):
    """The choice by transformers' own forward pass of the question over the reused cache."""
    reused = fuse(model, prompt, "full_reuse").cache
    document, asked = prompt.document_span, prompt.question_span
    cache = DynamicCache()
    for index, states in enumerate(reused.layers):
        cache.update(states.keys[:, :, : asked.start].clone(), states.values[:, :, : asked.start].clone(), index)
    reused_cache = {cache_argument(): cache}
    with torch.inference_mode():
        states = model(torch.tensor([prompt.question]), output_hidden_states=True, **reused_cache).hidden_states
        module = model.model.layers[layer]
        queries = decoder.queries(module.self_attn, module.input_layernorm(states[layer]))
        rotary = Rotary.of(model, len(prompt.ids))[layer]
        queries = rotary(queries, torch.arange(asked.start, asked.stop))[0]  # (heads, question, head_dim)
    keys = cache.layers[layer].keys[0, :, document.start :]
    heads, question = queries.shape[:2]
    keys = keys.repeat_interleave(heads // len(keys), dim=0)
    flat_queries, flat_keys = (states.transpose(0, 1).flatten(1) for states in (queries, keys))
    products = flat_queries @ flat_keys.mT * module.self_attn.scaling / heads**0.5
    for row in range(question):
        products[row, len(document) + row + 1 :] = float("-inf")
    scores = products.softmax(-1).sum(0)[: len(document)]
    smoothed = avg_pool1d(scores[None], 5, stride=1, padding=2)[0]
    return (smoothed.topk(count).indices.sort().values + document.start).tolist()


def chosen(prefill, prompt):
    return [position for position in prefill.selected.tolist() if position in prompt.document_span]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "olmo2"])  # it has no input_layernorm
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_choice_is_that_of_the_question_over_the_reused_cache(family, rng, layer):
    model = make_model(family)
    prompt = random_prompt(rng)
    count = int(0.3 * len(prompt.document_span))
    prefill = fuse(model, prompt, "a3", ratio=0.3, layer=layer, keys="stored")
    assert chosen(prefill, prompt) == expected(model, prompt, layer, count)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_where_the_reused_cache_is_exact_stored_keys_are_fresh_ones(llama, rng, layer):
    """With one chunk and no prefix."""
    prompt = random_prompt(rng, chunks=(40,), prefix=None)
    stored, fresh = (fuse(llama, prompt, "a3", ratio=0.2, layer=layer, keys=keys) for keys in ("stored", "fresh"))
    assert stored.selected.tolist() == fresh.selected.tolist()
    assert len(chosen(stored, prompt)) == 8


def test_no_layer_takes_more_than_the_chosen_tokens(llama, rng, monkeypatch):
    prompt = random_prompt(rng)
    rows = []

    def run_layer(layer, hidden, *args, real=decoder.run_layer, **options):
        rows.append(hidden.shape[1])
        return real(layer, hidden, *args, **options)

    monkeypatch.setattr(decoder, "run_layer", run_layer)
    prefill = fuse(llama, prompt, "a3", ratio=0.1, layer=2, keys="stored")
    question = len(prompt.question)
    computed = len(prefill.selected)
    assert rows[-5:] == [question] * 2 + [computed] * 3  # those before are of precompute


def test_in_a_workspace_the_choice_is_the_same(llama, rng):
    workspace = Workspace(llama, 200)
    selector = get_selector("a3", ratio=0.2, layer=2, keys="stored")
    for _ in range(3):
        prompt = random_prompt(rng)
        store = memory_store()
        precompute(llama, [prompt], store)
        alone = fused_prefill(llama, prompt, store, selector)
        shared = fused_prefill(llama, prompt, store, selector, workspace=workspace)
        assert shared.selected.tolist() == alone.selected.tolist()
        assert torch.equal(shared.logits, alone.logits)


def test_what_cannot_be_is_refused(llama, rng):
    with pytest.raises(ValueError, match="keys is 'old': choose 'fresh' or 'stored'"):
        get_selector("a3", keys="old")
    with pytest.raises(ValueError, match="a3_blend compares fresh keys and values with stored ones"):
        get_selector("a3_blend", keys="stored")
    with pytest.raises(ValueError, match="selection layer 9: this model's layers are 0 to 2"):
        fuse(llama, random_prompt(rng), "a3", layer=9, keys="stored")
