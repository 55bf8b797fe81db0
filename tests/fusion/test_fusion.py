"""The fused prefill against a full prefill, and against a slow reading of the paper."""

import math
from random import Random

import pytest
import torch
from helpers import (
    BOS,
    FAMILIES,
    RATIO_SELECTORS,
    ROPES,
    assert_caches_agree,
    fuse,
    make_model,
    memory_store,
    plain,
    random_ids,
    random_prompt,
    relative_error,
    shared_model,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from slow import slow_model
from transformers import AutoModelForCausalLM, GPT2Config

from ragkv import Prompt, StoreError, decode, fused_prefill, load_model, precompute
from ragkv.fusion.workspace import Workspace
from ragkv.models.checks import check_model
from ragkv.models.fingerprint import fingerprint
from ragkv.selectors import get_selector


def assert_caches_equal(found, expected):
    assert len(found.layers) == len(expected.layers)
    assert_caches_agree(found, expected, 1e-5)


@pytest.mark.parametrize("prefix", [4, None])
@pytest.mark.parametrize("name", [*RATIO_SELECTORS, "full_prefill"])
def test_recomputing_everything_is_a_full_prefill(model, rng, name, prefix):
    prompt = random_prompt(rng, prefix=prefix)
    prefill = fuse(model, prompt, name, **({} if name == "full_prefill" else {"ratio": 1.0}))
    logits, cache = plain(model, prompt)
    assert relative_error(prefill.logits, logits) <= 1e-5
    assert_caches_equal(prefill.cache, cache)
    assert prefill.cache.get_seq_length() == len(prompt.ids)


@pytest.mark.parametrize("name", [name for name in RATIO_SELECTORS if name != "probe"])  # which has no such layer
@pytest.mark.parametrize("layer", [0, 2])
def test_ratio_one_is_exact_at_any_selection_layer(llama, rng, name, layer):
    prompt = random_prompt(rng)
    prefill = fuse(llama, prompt, name, ratio=1.0, layer=layer)
    assert relative_error(prefill.logits, plain(llama, prompt)[0]) <= 1e-5


@pytest.mark.parametrize("rope", ROPES)
def test_ratio_one_is_exact_for_every_rope(rng, rope):
    model, prompt = make_model("llama", rope_parameters=ROPES[rope]), random_prompt(rng, chunks=(60, 60, 60))
    assert relative_error(fuse(model, prompt, "a3", ratio=1.0).logits, plain(model, prompt)[0]) <= 1e-5


@pytest.mark.parametrize("name", ["full_reuse", "a3", "epic"])
def test_a_chunk_alone_needs_no_recomputation(model, rng, name):
    prompt = Prompt([], [random_ids(rng, 17)], random_ids(rng, 5))
    prefill = fuse(model, prompt, name, **({} if name == "full_reuse" else {"ratio": 0.2}))
    logits, cache = plain(model, prompt)
    assert relative_error(prefill.logits, logits) <= 1e-5
    assert_caches_equal(prefill.cache, cache)


def test_a_chunk_behind_the_prefix_needs_no_recomputation(model, rng):
    prompt = random_prompt(rng, chunks=(17,))
    logits, cache = plain(model, prompt)
    prefill = fuse(model, prompt.behind_prefix(), "full_reuse")
    assert relative_error(prefill.logits, logits) <= 1e-5
    assert_caches_equal(prefill.cache, cache)
    assert relative_error(fuse(model, prompt, "full_reuse").logits, logits) > 1e-3  # the context matters


def test_reuse_of_several_chunks_is_an_approximation(model, rng):
    prompt = random_prompt(rng)
    logits, cache = plain(model, prompt)
    prefill = fuse(model, prompt, "full_reuse")
    assert relative_error(prefill.logits, logits) > 1e-3
    stop = len(prompt.prefix)
    for mine, theirs in zip(prefill.cache.layers, cache.layers, strict=True):
        assert relative_error(mine.keys[:, :, :stop], theirs.keys[:, :, :stop]) <= 1e-5
    first = prefill.cache.layers[0]  # the first layer's keys and values have no context
    assert relative_error(first.keys, cache.layers[0].keys) <= 1e-5
    assert relative_error(first.values, cache.layers[0].values) <= 1e-5


lengths = st.lists(st.integers(1, 9), max_size=4).map(tuple)


@settings(max_examples=15)
@given(
    chunks=lengths,
    question=st.integers(1, 4),
    prefix=st.sampled_from([None, 1, 4]),
    ratio=st.integers(0, 64).map(lambda n: n / 64),
)
@example(chunks=(1,), question=1, prefix=None, ratio=63 / 64)
@example(chunks=(1,), question=1, prefix=1, ratio=1.0)
@example(chunks=(3, 2), question=1, prefix=4, ratio=0.0)
@pytest.mark.parametrize("name", RATIO_SELECTORS)
def test_the_budget_is_exact(name, chunks, question, prefix, ratio):
    prompt = random_prompt(Random(0), chunks, question, prefix)
    selected = fuse(shared_model("qwen3"), prompt, name, ratio=ratio).selected.tolist()
    assert len(selected) == math.floor(ratio * sum(chunks)) + question
    assert selected == sorted(set(selected))
    assert selected[-question:] == list(prompt.question_span)
    assert set(selected[:-question]) <= set(prompt.document_span)


def test_what_reuse_and_full_prefill_recompute(llama, rng):
    prompt = random_prompt(rng)
    assert fuse(llama, prompt, "full_reuse").selected.tolist() == list(prompt.question_span)
    assert fuse(llama, prompt, "cat").selected.tolist() == [len(prompt.ids) - 1]
    assert fuse(llama, prompt, "full_prefill").selected.tolist() == list(range(len(prompt.ids)))


@pytest.mark.parametrize("prefix", [4, None])
@pytest.mark.parametrize("name", ["epic", "a3", "cacheblend"])
@pytest.mark.parametrize("family", FAMILIES)
def test_partial_recomputation_is_what_the_paper_says(family, name, prefix):
    model, prompt = make_model(family, num_hidden_layers=4), random_prompt(Random(7), prefix=prefix)
    prefill = fuse(model, prompt, name, ratio=0.3)
    logits, cache, rows = slow_model(model, prompt, 0.3).prefill(name)
    assert prefill.selected.tolist() == rows
    assert relative_error(prefill.logits, logits) <= 1e-5
    for layer, (keys, values) in zip(prefill.cache.layers, cache, strict=True):
        assert relative_error(layer.keys[0], keys) <= 1e-5
        assert relative_error(layer.values[0], values) <= 1e-5
    assert relative_error(prefill.logits, plain(model, prompt)[0]) > 1e-4  # it is no full prefill


@pytest.mark.parametrize("name", ["a3", "random", "a3_blend", "cat"])
def test_the_same_inputs_give_the_same_bits(llama, rng, name):
    prompt = random_prompt(rng)
    first, second = fuse(llama, prompt, name), fuse(llama, prompt, name)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.selected, second.selected)
    for one, other in zip(first.cache.layers, second.cache.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


def test_bfloat16_is_close_to_itself_and_to_float32(family, rng):
    model, prompt = make_model(family, dtype=torch.float32), random_prompt(rng)
    exact = plain(model, prompt)[0]
    half = model.to(torch.bfloat16)
    full, a3 = fuse(half, prompt, "full_prefill"), fuse(half, prompt, "a3", ratio=1.0)
    assert a3.logits.dtype == a3.cache.layers[0].keys.dtype == torch.bfloat16
    assert relative_error(a3.logits, full.logits) <= 2e-2
    assert relative_error(a3.logits, exact) <= 5e-2


def test_cat_reuses_the_question_too(llama, rng):
    """Its keys and values are those of the question behind BOS, but for the last token's own."""
    prompt = random_prompt(rng)
    slow = slow_model(llama, prompt, 0.0)
    question = slow.alone(prompt.question, (BOS,))
    for index, layer in enumerate(fuse(llama, prompt, "cat").cache.layers):
        keys = slow.rotated(slow.model.model.layers[index], question[index][0], prompt.question_span)
        stop = len(prompt.ids) - 1
        assert relative_error(layer.keys[0, :, slow.stop : stop], keys[:, :-1]) <= 1e-5
        assert relative_error(layer.values[0, :, slow.stop : stop], question[index][1][:, :-1]) <= 1e-5


def test_stages_are_timed(llama, rng):
    timings = fuse(llama, random_prompt(rng), "a3").timings
    assert set(timings) == {"open", "load", "select", "total"}


def test_device_map_spreads_the_layers(rng):
    plainly, _ = load_model("tiny-llama", device="cpu", dtype="float32")
    spread, _ = load_model("tiny-llama", dtype="float32", device_map={"": "cpu"})
    prompt = random_prompt(rng)
    assert torch.equal(fuse(spread, prompt, "a3").logits, fuse(plainly, prompt, "a3").logits)


@pytest.mark.parametrize("name", ["a3", "epic"])
def test_a_selection_layer_too_high_is_refused(llama, rng, name):
    with pytest.raises(ValueError, match=r"selection layer 3.*0 to 2"):
        fused_prefill(llama, random_prompt(rng), memory_store(), get_selector(name, layer=3))


def test_a_prompt_too_long_is_refused(llama, rng):
    prompt, selector = random_prompt(rng, chunks=(400, 113), prefix=None, question=1), get_selector("full_prefill")
    with pytest.raises(ValueError, match=r"514 tokens.*512 positions"):
        fused_prefill(llama, prompt, None, selector)
    with pytest.raises(ValueError, match=r"514 tokens.*512 positions"):
        precompute(llama, [prompt], memory_store())


@pytest.mark.parametrize("token", [-1, 200])
def test_an_id_outside_the_vocabulary_is_named(llama, token):
    with pytest.raises(ValueError, match=rf"token id {token} .*200"):
        fused_prefill(llama, Prompt([], [[5, token]], [6]), None, get_selector("full_prefill"))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}),
    ],
)
def test_an_active_sliding_window_is_refused(rng, family, options):
    model = make_model(family, **options)
    with pytest.raises(ValueError, match="sliding window of 8 tokens"):
        fused_prefill(model, random_prompt(rng), None, get_selector("full_prefill"))


def test_a_sliding_window_that_is_off_does_not_matter(rng):
    model = make_model("qwen2", sliding_window=8, use_sliding_window=False)
    prompt = random_prompt(rng)
    assert relative_error(fuse(model, prompt, "a3", ratio=1.0).logits, plain(model, prompt)[0]) <= 1e-5


def test_a_rope_that_changes_with_the_length_is_refused(rng):
    model = make_model("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0})
    with pytest.raises(ValueError, match=r"'dynamic'.*default, linear, llama3, yarn, longrope"):
        fused_prefill(model, random_prompt(rng), None, get_selector("full_prefill"))


def test_an_unsupported_architecture_is_named(rng):
    model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=200))
    with pytest.raises(
        ValueError, match=r"'gpt2'.*llama, mistral, qwen2, qwen3, phi3, granite, smollm3, olmo2, gemma3_text"
    ):
        check_model(model)
    with pytest.raises(ValueError, match="'gpt2'"):
        fused_prefill(model, random_prompt(rng), None, get_selector("full_prefill"))


def test_reuse_needs_a_store(llama, rng):
    with pytest.raises(ValueError, match="A3 reuses stored chunks"):
        fused_prefill(llama, random_prompt(rng), None, get_selector("a3"))


def test_missing_segments_are_counted(llama, rng):
    prompt, store = random_prompt(rng), memory_store()
    precompute(llama, [Prompt(prompt.prefix, prompt.chunks[:1], prompt.question)], store)
    with pytest.raises(StoreError, match=r"2 of the prompt's 4 segments.*not precomputed.*Run precompute"):
        fused_prefill(llama, prompt, store, get_selector("a3"))
    with pytest.raises(StoreError, match=r"3 of the prompt's 4 segments.*behind another context"):
        fused_prefill(llama, prompt.behind_prefix(), store, get_selector("a3"))


def test_a_store_of_another_model_is_named(llama, rng):
    from ragkv.models.fingerprint import fingerprint

    prompt, store, other = random_prompt(rng), memory_store(), make_model("llama", seed=1)
    precompute(other, [prompt], store)
    pattern = f"another model.*{fingerprint(other)[:12]}.*{fingerprint(llama)[:12]}"
    with pytest.raises(StoreError, match=pattern):
        fused_prefill(llama, prompt, store, get_selector("a3"))


@pytest.mark.parametrize("options", [{"dtype": "float8"}, {"device": "cuda"}])
def test_load_model_refuses_what_it_cannot_do(options, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=next(iter(options.values()))):
        load_model("tiny-llama", **options)


def test_an_unknown_model_names_the_embedded_ones(tmp_path):
    with pytest.raises(ValueError, match="tiny-llama"):
        load_model(tmp_path / "nothing-here")


def test_a_window_wider_than_the_prompt_decodes_as_the_model_does(rng):
    """transformers would make sliding cache layers here; the fused cache is an ordinary one."""
    model, prompt = make_model("mistral", sliding_window=256), random_prompt(rng)
    model.generation_config.eos_token_id = None
    prefill = fuse(model, prompt, "a3", ratio=1.0)
    ids = torch.tensor([prompt.ids])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert prefill.cache.get_seq_length() == len(prompt.ids)
    assert decode(model, prefill, max_new_tokens=8).ids == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("room", [None, 100], ids=["own memory", "in a workspace"])
def test_an_answer_that_leaves_the_window_is_what_the_model_says(rng, room):
    """A workspace's own steps know no window, so it goes on in memory of its own."""
    prompt = random_prompt(rng)
    model = make_model("mistral", sliding_window=len(prompt.ids) + 2)
    model.generation_config.eos_token_id = None
    store = memory_store()
    precompute(model, [prompt], store)
    workspace = None if room is None else Workspace(model, room)
    prefill = fused_prefill(model, prompt, store, get_selector("a3", ratio=1.0), workspace=workspace)
    ids = torch.tensor([prompt.ids])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    assert decode(model, prefill, max_new_tokens=40).ids == expected[0, ids.shape[1] :].tolist()


def test_cat_of_a_question_alone_is_a_full_prefill(llama):
    prompt = Prompt([], [], [5, 6, 7])
    assert relative_error(fuse(llama, prompt, "cat").logits, plain(llama, prompt)[0]) <= 1e-5


@pytest.mark.parametrize(("context", "said"), [([999], "vocabulary"), ([9] * 600, "positions")])
def test_a_context_that_the_model_cannot_read_is_refused(llama, context, said):
    with pytest.raises(ValueError, match=said):
        precompute(llama, [Prompt([1], [[5]], [6], contexts=[context])], memory_store())


def test_precompute_refuses_what_fused_prefill_would_refuse(rng):
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=200))
    with pytest.raises(ValueError, match="gpt2"):
        precompute(gpt2, [random_prompt(rng)], memory_store())


@pytest.mark.parametrize("damage", [b"", b"garbage" * 9])
def test_missing_segments_are_said_to_be_missing_beside_a_damaged_file(llama, rng, damage):
    store = memory_store()
    precompute(llama, [random_prompt(rng)], store)
    store.folder.files.pipe_file(store.path(store.keys()[0]), damage)
    with pytest.raises(StoreError, match="not in the store"):
        fused_prefill(llama, random_prompt(rng), store, get_selector("a3"))


def test_a_model_made_in_inference_mode_has_a_fingerprint():
    with torch.inference_mode():
        model = make_model("llama")
    assert fingerprint(model) == fingerprint(shared_model("llama"))
