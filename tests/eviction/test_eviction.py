"""Eviction against a slow, obvious version, and decoding that continues from the kept tokens at the right positions."""

import math

import pytest
import torch
from helpers import memory_store, random_prompt, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkv import Prompt, fused_prefill, precompute
from ragkv.eviction import SnapKV, StreamingLLM, get_eviction
from ragkv.fusion.cache import cache_argument
from ragkv.fusion.decoding import decode
from ragkv.selectors import get_selector


def prefill(model, prompt, eviction, name="full_prefill", **options):
    store = memory_store()
    precompute(model, [prompt], store)
    return fused_prefill(model, prompt, store, get_selector(name, **options), eviction=eviction)


def slow_snapkv(scores, count, pooling, kernel, block):
    """One KV head in plain Python: pooled, in blocks, the best blocks until `count` tokens are chosen."""
    half = kernel // 2
    padded = [0.0 if pooling == "avg" else -math.inf] * half
    padded = padded + scores + padded
    windows = [padded[i : i + kernel] for i in range(len(scores))]
    pooled = [sum(w) / kernel if pooling == "avg" else max(w) for w in windows]
    blocks = [range(i, min(i + block, len(scores))) for i in range(0, len(scores), block)]
    means = [sum(pooled[i] for i in b) / len(b) for b in blocks]
    order = sorted(range(len(blocks)), key=lambda b: (-means[b], b))
    return sorted([i for b in order for i in blocks[b]][:count])


@settings(max_examples=40)
@given(
    document=st.integers(1, 40),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    question=st.integers(1, 4),
    pooling=st.sampled_from(["avg", "max"]),
    kernel=st.sampled_from([1, 3, 5, 7]),
    block=st.sampled_from([1, 4, 8, 16]),
    share=st.floats(0, 1),
    seed=st.integers(0, 999),
)
def test_snapkv_by_hand(document, kv_heads, group, question, pooling, kernel, block, share, seed):
    random = torch.Generator().manual_seed(seed)
    prompt = Prompt([1, 2], [[5] * document], [7] * question)
    tokens = len(prompt.ids)
    queries = torch.randn(1, kv_heads * group, question, 4, generator=random)
    keys = torch.randn(1, kv_heads, tokens, 4, generator=random)
    capacity = max(block, 2 + question + int(share * document))
    kept = SnapKV(capacity=capacity, pooling=pooling, kernel=kernel, block=block).choose(
        prompt, queries, keys, torch.tensor(prompt.question_span), 0.5
    )
    count = min(document, capacity - 2 - question)
    assert kept.shape == (kv_heads, count)
    for head in range(kv_heads):
        scores = torch.zeros(tokens, dtype=torch.float64)
        for query_head in range(head * group, (head + 1) * group):
            for row, position in enumerate(prompt.question_span):
                products = 0.5 * keys[0, head, : position + 1].double() @ queries[0, query_head, row].double()
                scores[: position + 1] += products.softmax(0)
        expected = slow_snapkv(scores[2 : 2 + document].tolist(), count, pooling, kernel, block)
        if kept[head].tolist() != expected:  # only where two blocks score the same to the last bit
            left, right = (scores[2:][torch.tensor(k)].sum() for k in (kept[head].tolist(), expected))
            assert torch.isclose(left, right, rtol=1e-4)
            assert pooling == "max" or kernel > 1 or block > 1


@given(st.integers(0, 30), st.integers(1, 5), st.integers(0, 40))
def test_streaming_keeps_the_last_tokens(document, question, capacity):
    prompt = Prompt([1, 2, 3], [[5] * document] if document else [], [7] * question)
    eviction, keys = StreamingLLM(capacity=3 + question + capacity), torch.zeros(1, 2, len(prompt.ids), 4)
    kept = eviction.choose(prompt, keys[:, :, -question:], keys, torch.tensor(prompt.question_span), 1.0)
    assert kept.tolist() == [list(range(document))[max(0, document - capacity) :]] * 2


EVICTIONS = [{"name": "streaming"}, {"name": "snapkv"}, {"name": "snapkv", "pooling": "max", "block": 4}]


@pytest.mark.parametrize("eviction", EVICTIONS, ids=str)
@pytest.mark.parametrize("selector", ["full_prefill", "full_reuse", "a3", "probe", "cat"])
def test_every_head_keeps_the_capacity_and_logits_stay(model, rng, selector, eviction):
    """Eviction happens after the prefill, so its logits are those without eviction."""
    prompt = random_prompt(rng)
    found = prefill(model, prompt, get_eviction(**eviction, capacity=21), selector)
    whole = prefill(model, prompt, None, selector)
    assert torch.equal(found.logits, whole.logits)
    assert (found.tokens, whole.tokens) == (50, 50)
    for layer in found.cache.layers:
        assert (
            layer.keys.shape == layer.values.shape == (*whole.cache.layers[0].keys.shape[:2], 21, layer.keys.shape[3])
        )
    assert found.cache_bytes * 50 == whole.cache_bytes * 21


@pytest.mark.parametrize("eviction", EVICTIONS, ids=str)
def test_kept_keys_and_values_are_unchanged(llama, rng, eviction):
    """Prefix and question are whole, and every kept column is one of the full cache's, in order."""
    prompt = random_prompt(rng)
    found = prefill(llama, prompt, get_eviction(**eviction, capacity_ratio=0.5), "a3")
    whole = prefill(llama, prompt, None, "a3")
    for small, full in zip(found.cache.layers, whole.cache.layers, strict=True):
        for head in range(full.keys.shape[1]):
            same = (small.keys[0, head][:, None] == full.keys[0, head]).all(-1)  # (25, 50)
            places = [row.nonzero()[0].item() for row in same]
            assert places == sorted(set(places))
            assert places[:4] == [0, 1, 2, 3]
            assert places[-6:] == [44, 45, 46, 47, 48, 49]
            assert torch.equal(small.values[0, head], full.values[0, head, places])


def test_a_capacity_of_the_whole_prompt_changes_nothing(model, rng):
    prompt = random_prompt(rng)
    for eviction in EVICTIONS:
        found = prefill(model, prompt, get_eviction(**eviction, capacity_ratio=1.0), "a3")
        whole = prefill(model, prompt, None, "a3")
        assert decode(model, found, max_new_tokens=8).ids == decode(model, whole, max_new_tokens=8).ids


def test_decoding_continues_at_the_right_positions(model, rng):
    """After StreamingLLM the next token is that of the full cache with the evicted columns masked out."""
    prompt = random_prompt(rng)
    found, whole = (prefill(model, prompt, e) for e in (StreamingLLM(capacity=20), None))
    token = int(found.logits.argmax())
    visible = torch.zeros(1, 51, dtype=torch.bool)
    visible[:, [*range(4), *range(34, 51)]] = True  # the prefix, ten of the document, the question, the new token
    mask = torch.zeros(1, 1, 1, 51).masked_fill(~visible, float("-inf"))
    with torch.inference_mode():
        expected = model(
            torch.tensor([[token]]),
            position_ids=torch.tensor([[50]]),
            attention_mask=mask,
            **{cache_argument(): whole.cache},
        ).logits[0, -1]
        ids, cache = [token], found.cache
        generated = decode(model, found, max_new_tokens=2).ids
        logits = model(torch.tensor([[token]]), position_ids=torch.tensor([[50]]), **{cache_argument(): cache}).logits[
            0, -1
        ]
    assert relative_error(logits, expected) <= 1e-5
    stops = model.generation_config.eos_token_id
    assert generated in (ids, [*ids, int(expected.argmax())]) or token == stops


def test_decoding_does_not_change_the_prefill(llama, rng):
    found = prefill(llama, random_prompt(rng), SnapKV(capacity=20), "a3")
    assert decode(llama, found, max_new_tokens=5).ids == decode(llama, found, max_new_tokens=5).ids
    assert found.cache.get_seq_length() == 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "snapkv"}, "either capacity .* or capacity_ratio"),
        ({"name": "snapkv", "capacity": 20, "capacity_ratio": 0.5}, "either capacity"),
        ({"name": "streaming", "capacity_ratio": 1.5}, "capacity_ratio is 1.5"),
        ({"name": "snapkv", "capacity": 20, "pooling": "sum"}, "pooling is 'sum': choose 'avg' or 'max'"),
        ({"name": "snapkv", "capacity": 20, "kernel": 4}, "kernel is 4"),
        ({"name": "snapkv", "capacity": 20, "block": 0}, "block is 0"),
        ({"name": "snapkv", "capacity": 20, "block": 32}, "block of 32 tokens is larger than the capacity of 20"),
        ({"name": "streaming", "capacity": 20, "block": 4}, "has no option block: it takes capacity, capacity_ratio"),
        ({"name": "h2o", "capacity": 20}, "unknown eviction 'h2o': choose one of streaming, snapkv"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ValueError, match=said):
        get_eviction(**options)


def test_a_capacity_too_small_for_prefix_and_question(llama, rng):
    prompt = random_prompt(rng)
    with pytest.raises(ValueError, match="capacity is 9 tokens, but the prompt's prefix and question alone have 10"):
        prefill(llama, prompt, StreamingLLM(capacity=9))
    with pytest.raises(ValueError, match="block of 16 tokens is larger than the capacity of 12"):
        prefill(llama, prompt, SnapKV(capacity_ratio=0.25, block=16))
