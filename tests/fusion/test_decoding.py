"""Decoding from a prefill, against transformers' generate."""

import pytest
import torch
from helpers import fuse, make_model, plain, random_prompt, relative_error

from ragkv import decode, generate, generate_inputs
from ragkv.fusion.cache import cache_argument, fork
from ragkv.fusion.decoding import stop_ids
from ragkv.tiny.language import build_tokenizer

STEPS = 12


def endless(model):
    """Without an end of sequence, so that every generation has all its steps."""
    model.generation_config.eos_token_id = None
    return model


def greedy(model, prompt, **options):
    """The new ids of transformers' own greedy search over the full ids."""
    ids = torch.tensor([prompt.ids])
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=STEPS, do_sample=False, **options)
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", ["a3", "epic"])
def test_decoding_after_ratio_one_is_plain_generation(family, rng, name):
    model, prompt = endless(make_model(family)), random_prompt(rng)
    expected = greedy(model, prompt)
    assert decode(model, fuse(model, prompt, name, ratio=1.0), max_new_tokens=STEPS).ids == expected
    assert len(set(expected)) > 2  # it says something


@pytest.mark.parametrize("name", ["a3", "full_reuse", "cat"])
def test_the_cache_is_an_ordinary_one(family, rng, name):
    """generate() goes on from it as decode() does, also when it was fused from reused parts."""
    model, prompt = endless(make_model(family)), random_prompt(rng)
    prefill = fuse(model, prompt, name)
    out = decode(model, prefill, max_new_tokens=STEPS).ids
    cache = fork(prefill.cache)
    cache.crop(-1)  # generate() computes the last token itself
    assert greedy(model, prompt, **{cache_argument(): cache}) == out
    first = int(prefill.logits.argmax())
    full = torch.tensor([[*prompt.ids, first]])
    rest = model.generate(
        full,
        attention_mask=torch.ones_like(full),
        max_new_tokens=STEPS - 1,
        do_sample=False,
        **{cache_argument(): fork(prefill.cache)},
    )
    assert [first, *rest[0, full.shape[1] :].tolist()] == out


def test_a_prefill_can_be_decoded_again(family, rng):
    model, prompt = endless(make_model(family)), random_prompt(rng)
    prefill = fuse(model, prompt, "a3")
    before = [(layer.keys.clone(), layer.values.clone()) for layer in prefill.cache.layers]
    assert decode(model, prefill, max_new_tokens=STEPS).ids == decode(model, prefill, max_new_tokens=STEPS).ids
    assert prefill.cache.get_seq_length() == len(prompt.ids)
    for layer, (keys, values) in zip(prefill.cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


def test_decoding_stops_at_the_end_of_sequence(rng):
    model, prompt = endless(make_model("llama")), random_prompt(rng)
    prefill = fuse(model, prompt, "full_prefill")
    ids = decode(model, prefill, max_new_tokens=STEPS).ids
    stop = next(token for i, token in enumerate(ids) if i >= 2 and token not in ids[:i])
    for eos in (stop, [stop, 0]):
        model.generation_config.eos_token_id = eos
        stopped = decode(model, prefill, max_new_tokens=STEPS)
        assert (stopped.ids, stopped.stop) == (ids[: ids.index(stop)], stop)
    assert decode(model, prefill, max_new_tokens=2).stop is None  # cut off
    assert decode(model, prefill, max_new_tokens=STEPS, ended=lambda ids: len(ids) == 2).stop is None
    model.generation_config.eos_token_id = ids[0]
    nothing = decode(model, prefill, max_new_tokens=STEPS)
    assert (nothing.ids, nothing.tpot, nothing.stop) == ([], None, ids[0])


@pytest.mark.parametrize(("eos", "expected"), [(None, set()), (2, {2}), ([2, 5], {2, 5})])
def test_stop_ids(eos, expected):
    model = make_model("llama")
    model.generation_config.eos_token_id = eos
    assert stop_ids(model) == expected


def test_one_token_has_no_time_per_token(rng):
    model = endless(make_model("llama"))
    prefill = fuse(model, random_prompt(rng), "a3")
    one, three = decode(model, prefill, max_new_tokens=1), decode(model, prefill, max_new_tokens=3)
    assert one.tpot is None
    assert three.tpot is not None
    assert one.ids == three.ids[:1]


def test_tokens_are_streamed_as_they_come(rng):
    model = endless(make_model("llama"))
    said = []
    ids = decode(model, fuse(model, random_prompt(rng), "a3"), max_new_tokens=5, on_token=said.append).ids
    assert said == ids
    assert len(ids) == 5


def test_no_new_tokens_is_refused(llama, rng):
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        decode(llama, fuse(llama, random_prompt(rng), "a3"), max_new_tokens=0)


def test_generate_gives_the_text_of_the_ids(rng):
    model, prompt, tokenizer = endless(make_model("llama")), random_prompt(rng), build_tokenizer()
    prefill = fuse(model, prompt, "a3")
    ids = decode(model, prefill, max_new_tokens=4).ids
    assert generate(model, tokenizer, prompt, prefill, max_new_tokens=4) == tokenizer.decode(ids)


def test_a_prefill_of_another_prompt_is_refused(llama, rng):
    prefill, other = fuse(llama, random_prompt(rng), "a3"), random_prompt(rng, chunks=(3,))
    with pytest.raises(ValueError, match=f"prefill is of 50 tokens, the prompt has {len(other.ids)}"):
        generate(llama, build_tokenizer(), other, prefill)


def test_a_full_prefill_leaves_what_a_forward_leaves(model, rng):
    prompt = random_prompt(rng)
    prefill = fuse(model, prompt, "full_prefill")
    logits, cache = plain(model, prompt)
    again = torch.tensor([[int(logits.argmax())]])
    with torch.inference_mode():
        mine = model(input_ids=again, **{cache_argument(): fork(prefill.cache)}).logits
        theirs = model(input_ids=again, **{cache_argument(): cache}).logits
    assert relative_error(mine, theirs) <= 1e-5


@pytest.mark.parametrize(
    "option",
    [
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_early_exit": 1},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 8},
    ],
    ids=lambda option: next(iter(option)),
)
def test_generate_from_a_prefill_does_not_follow_the_checkpoints_options_for_caches(family, rng, option):
    model, prompt = endless(make_model(family)), random_prompt(rng)
    expected = greedy(model, prompt)
    prefill = fuse(model, prompt, "a3", ratio=1.0)
    model.config.use_cache = False
    for name, value in option.items():
        setattr(model.generation_config, name, value)
    out = model.generate(**generate_inputs(prompt, prefill), max_new_tokens=STEPS, do_sample=False)
    assert out[0, len(prompt.ids) :].tolist() == expected
    assert decode(model, prefill, max_new_tokens=STEPS).ids == expected


@pytest.mark.parametrize("option", ["assistant_model", "prompt_lookup_num_tokens"])
def test_assisted_decoding_from_a_prefill_is_refused(llama, rng, option):
    prompt = random_prompt(rng)
    inputs = generate_inputs(prompt, fuse(llama, prompt, "a3"))
    with pytest.raises(TypeError, match=f"multiple values for keyword argument '{option}'"):
        llama.generate(**inputs, **{option: llama})
