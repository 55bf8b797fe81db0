"""What is special about a family, against transformers' own forward. Most other tests run for every family."""

import copy

import pytest
import torch
from adapters import Int8Linear, Lora
from helpers import BOS, FAMILIES, fuse, make_model, memory_store, plain, random_ids, random_prompt, relative_error
from torch import nn
from transformers import Gemma3TextConfig

from ragkv import decode, fused_prefill, precompute
from ragkv.fusion.workspace import Workspace
from ragkv.models import families
from ragkv.models.checks import check_config
from ragkv.models.fingerprint import fingerprint
from ragkv.models.pass_shape import PassShape
from ragkv.models.rotary import Rotary
from ragkv.models.segment_pass import compute_segment, compute_segments
from ragkv.prompt import Segment
from ragkv.selectors import get_selector

PARTIAL = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}


def test_every_family_is_tested():
    assert set(FAMILIES) == set(families.FAMILIES)


def test_a_reused_chunk_has_the_keys_and_values_of_the_chunk_alone_at_its_place(model, rng):
    """transformers computes it there: behind BOS, at the chunk's positions in the prompt."""
    prompt = random_prompt(rng)
    cache = fuse(model, prompt, "full_reuse").cache
    for chunk, span in zip(prompt.chunks, prompt.chunk_spans, strict=True):
        ids, positions = [BOS, *chunk], range(span.start - 1, span.stop)
        with torch.inference_mode():
            alone = model(torch.tensor([ids]), position_ids=torch.tensor([list(positions)]), use_cache=True)
        for mine, theirs in zip(cache.layers, alone.past_key_values.layers, strict=True):
            assert relative_error(mine.keys[:, :, span.start : span.stop], theirs.keys[:, :, 1:]) <= 1e-5
            assert relative_error(mine.values[:, :, span.start : span.stop], theirs.values[:, :, 1:]) <= 1e-5


def test_layers_without_rotary_embedding_keep_their_keys_as_they_are(rng):
    model, prompt = make_model("smollm3"), random_prompt(rng)
    cache = fuse(model, prompt, "full_reuse").cache
    assert [bool(layer.self_attn.use_rope) for layer in model.model.layers] == [True, False, True]
    for chunk, span in zip(prompt.chunks, prompt.chunk_spans, strict=True):
        stored, _ = compute_segment(model, Segment(chunk, (BOS,)))
        unmoved = [
            torch.equal(layer.keys[0, :, span.start : span.stop], stored[index, 0])
            for index, layer in enumerate(cache.layers)
        ]
        assert unmoved == [False, True, False]


def test_channels_beyond_a_partial_rotary_embedding_keep_their_keys_as_they_are(rng):
    model, prompt = make_model("phi3", rope_parameters=dict(PARTIAL)), random_prompt(rng)
    cache, span = fuse(model, prompt, "full_reuse").cache, prompt.chunk_spans[1]
    stored, _ = compute_segment(model, Segment(prompt.chunks[1], (BOS,)))
    for index, layer in enumerate(cache.layers):
        moved = (layer.keys[0, :, span.start : span.stop] != stored[index, 0]).any((0, 1))  # (head_dim,)
        assert moved.tolist() == [True] * 8 + [False] * 8


@pytest.mark.parametrize("name", ["full_prefill", "a3", "cacheblend", "probe"])
def test_ratio_one_is_exact_with_a_partial_rotary_embedding(rng, name):
    model, prompt = make_model("phi3", rope_parameters=dict(PARTIAL)), random_prompt(rng)
    fused = fuse(model, prompt, name, **({} if name == "full_prefill" else {"ratio": 1.0}))
    assert relative_error(fused.logits, plain(model, prompt)[0]) <= 1e-5


@pytest.mark.parametrize("kind", [Lora, Int8Linear])
def test_fused_projections_of_another_class_are_called(rng, kind):
    model, prompt = make_model("phi3"), random_prompt(rng)
    layer = model.model.layers[1]
    layer.self_attn.qkv_proj = kind(layer.self_attn.qkv_proj)
    layer.mlp.gate_up_proj = kind(layer.mlp.gate_up_proj)
    assert relative_error(fuse(model, prompt, "a3", ratio=1.0).logits, plain(model, prompt)[0]) <= 1e-5
    assert relative_error(plain(model, prompt)[0], plain(make_model("phi3"), prompt)[0]) > 1e-3


LONGROPE = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
    },
}


@pytest.fixture
def longrope():
    model = make_model("phi3", **copy.deepcopy(LONGROPE))
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("room", [None, 200], ids=["own memory", "in a workspace"])
def test_longrope_is_exact_up_to_where_its_frequencies_change(rng, longrope, room):
    """Also if the model has just computed a longer prompt, with the other frequencies."""
    prompt, longer = (random_prompt(rng, chunks=(20, n)) for n in (24, 25))  # of 54 tokens and one more
    store = memory_store()
    precompute(longrope, [prompt, longer], store)
    plain(longrope, random_prompt(rng, chunks=(80,)))
    workspace = None if room is None else Workspace(longrope, room)
    fused = fused_prefill(longrope, prompt, store, get_selector("a3", ratio=1.0), workspace=workspace)
    assert relative_error(fused.logits, plain(longrope, prompt)[0]) <= 1e-5
    ids = torch.tensor([prompt.ids])
    expected = longrope.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
    assert decode(longrope, fused, max_new_tokens=10).ids == expected[0, len(prompt.ids) :].tolist()
    fused = fused_prefill(longrope, longer, store, get_selector("a3"), workspace=workspace)
    with pytest.raises(ValueError, match="64 positions before its LongRoPE changes the frequencies: ask for fewer"):
        decode(longrope, fused, max_new_tokens=10)


def test_longrope_is_refused_where_its_frequencies_change(rng, longrope):
    with pytest.raises(ValueError, match="has 65 tokens, more than the model's 64 positions before its LongRoPE"):
        fuse(longrope, random_prompt(rng, chunks=(55,)), "a3")


def test_padding_does_not_change_longropes_frequencies(rng, longrope):
    """A pass over several segments is padded, here to 67 positions."""
    segments = [Segment(tuple(random_ids(rng, 60)), (BOS, 5, 6)) for _ in range(2)]
    shape = PassShape.shared(segments[0], 200)
    assert shape.rows == 2
    assert shape.context + shape.tokens > 64
    for segment, (layers, surprisal) in zip(segments, compute_segments(longrope, segments, shape), strict=True):
        expected, expected_surprisal = compute_segment(longrope, segment)
        assert relative_error(layers, expected) <= 1e-5
        assert relative_error(surprisal, expected_surprisal) <= 1e-5


def test_long_and_short_frequencies_of_longrope_are_of_one_model(rng, longrope):
    before = fingerprint(longrope)
    frequencies = longrope.model.rotary_emb.inv_freq.clone()
    plain(longrope, random_prompt(rng, chunks=(80,)))
    assert not torch.equal(longrope.model.rotary_emb.inv_freq, frequencies)
    assert fingerprint(longrope) == before
    longrope.model.rotary_emb.inv_freq.mul_(1.01)
    assert fingerprint(longrope) != before


@pytest.mark.parametrize(
    ("entry", "value"),
    [("final_logit_softcapping", 30.0), ("attn_logit_softcapping", 50.0), ("use_bidirectional_attention", True)],
)
def test_what_is_not_computed_of_gemma3_is_refused(entry, value):
    with pytest.raises(ValueError, match=f"this gemma3_text has {entry} = {value}, .*: use a checkpoint without it"):
        check_config(make_model("gemma3_text", **{entry: value}).config)


def test_a_prompt_longer_than_gemma3s_window_is_refused(rng):
    model, prompt = make_model("gemma3_text", sliding_window=50), random_prompt(rng)
    assert len(prompt.ids) == 50
    assert relative_error(fuse(model, prompt, "a3", ratio=1.0).logits, plain(model, prompt)[0]) <= 1e-5
    with pytest.raises(ValueError, match="sliding window of 50 tokens, and the prompt has 51"):
        fuse(model, random_prompt(rng, question=7), "a3")


def test_each_of_gemma3s_rotary_embeddings_is_checked():
    ropes = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")}
    ropes["full_attention"] |= {"rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(ValueError, match="'dynamic': its frequencies depend on the length"):
        check_config(Gemma3TextConfig(rope_parameters=ropes))


CHANGES = {
    "granite's embeddings": ("granite", lambda model: setattr(model.model, "embedding_multiplier", 2.0)),
    "granite's residual": ("granite", lambda model: setattr(model.model.layers[1], "residual_multiplier", 2.0)),
    "granite's attention": ("granite", lambda model: setattr(model.model.layers[1].self_attn, "scaling", 2.0)),
    "granite's logits": ("granite", lambda model: setattr(model.config, "logits_scaling", 2.0)),
    "smollm3's rotary embedding": ("smollm3", lambda model: setattr(model.model.layers[1].self_attn, "use_rope", 1)),
    "gemma3's window": ("gemma3_text", lambda model: setattr(model.config, "sliding_window", 400)),
    "gemma3's norms": (
        "gemma3_text",
        lambda model: setattr(model.model.layers[1].post_feedforward_layernorm, "eps", 1),
    ),
    "gemma3's rotary scale": (
        "gemma3_text",
        lambda model: setattr(model.model.rotary_emb, "full_attention_attention_scaling", 2.0),
    ),
    "phi3's dropout": (
        "phi3",
        lambda model: setattr(model.model.layers[1], "resid_mlp_dropout", nn.Identity().eval()),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_family_adds_is_part_of_the_fingerprint(change):
    family, apply = CHANGES[change]
    model = make_model(family)
    before = fingerprint(model)
    assert before == fingerprint(make_model(family))
    apply(model)
    after = fingerprint(model)
    assert after != before
    assert after == fingerprint(model, fresh=True)


def test_dropout_behind_attention_is_refused_in_training_mode_only(rng):
    model, prompt = make_model("phi3", resid_pdrop=0.1), random_prompt(rng)
    precompute(model, [prompt], memory_store())
    with pytest.raises(ValueError, match=r"resid_attn_dropout has a dropout of 0.1: call model.eval\(\) first"):
        precompute(model.train(), [prompt], memory_store())


@pytest.mark.parametrize("family", ["smollm3", "phi3"])
def test_equal_rotary_embeddings_are_computed_once(family):
    rotaries = Rotary.of(make_model(family, num_hidden_layers=4), 10)
    assert len(rotaries) == 4
    assert len(set(map(id, rotaries))) == (2 if family == "smollm3" else 1)
