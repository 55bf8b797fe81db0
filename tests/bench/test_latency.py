"""The parts of the bench of shapes that run without a GPU."""

import pytest
import torch
from helpers import memory_store, random_prompt

from ragkv import fused_prefill, precompute
from ragkv.bench import random_models
from ragkv.bench.prefills import RATIOS, SELECTORS, methods, prefill_rows
from ragkv.bench.random_models import FAMILY, random_model
from ragkv.bench.random_models import random_prompt as prompt_of
from ragkv.costs.records import prefills_of, shape_of
from ragkv.costs.roofline import Machine
from ragkv.costs.shape import SHAPES, Shape
from ragkv.loading.memory import InMemory
from ragkv.loading.segments import SegmentInMemory
from ragkv.models.checks import check_prompt
from ragkv.models.segment_pass import compute_segment
from ragkv.selectors import get_selector
from ragkv.store import KVStore


def test_segments_in_memory_are_those_of_the_store(model, rng):
    prompt, store = random_prompt(rng), memory_store()
    precompute(model, [prompt], store)
    segments = {s: SegmentInMemory(*compute_segment(model, s)) for s in prompt.segments(model.config.bos_token_id)}
    for name in ("full_reuse", "a3", "surprisal"):
        stored, here = (
            fused_prefill(model, prompt, s, get_selector(name)) for s in (store, InMemory(segments).to("cpu"))
        )
        assert torch.equal(stored.logits, here.logits)
        assert torch.equal(stored.selected, here.selected)


@pytest.mark.parametrize("tokens", [200, 1000])
def test_random_prompts_have_the_given_length(llama, tokens):
    prompt = prompt_of(llama.config.vocab_size, tokens, 64)
    assert len(prompt.ids) == tokens
    assert max(map(len, prompt.chunks)) == 64
    assert prompt == prompt_of(llama.config.vocab_size, tokens, 64)
    if tokens <= llama.config.max_position_embeddings:
        check_prompt(llama, prompt, prompt.segments(llama.config.bos_token_id))


def test_rows_compare_with_the_faster_full_prefill_and_with_the_limit(llama, tmp_path):
    machine = Machine("made up", tflops=1.0, memory_gbs=1.0)
    tiers = ["page cache", "disk"]
    measured = methods(llama.config.num_hidden_layers)
    rows = prefill_rows(llama, 200, measured, tiers, KVStore(tmp_path), chunk_tokens=64, repeats=3, machine=machine)
    assert rows["selector"].tolist()[:2] == ["full_prefill", "transformers"]
    assert rows["tier"].tolist() == ["", ""] + [tier for tier in tiers for _ in measured]
    fused = rows.iloc[2:]
    assert (fused[["open", "load", "select"]] >= 0).all(axis=None)
    assert fused["compute"].notna().all()
    assert fused["selector"].tolist() == [name for name, _ in measured] * 2
    probes = fused[fused["selector"] == "probe"]
    assert probes["hops"].tolist() == [options.get("hops", 3) for name, options in measured if name == "probe"] * 2
    assert fused[fused["selector"] != "probe"]["hops"].isna().all()
    stored = fused[fused["keys"] == "stored"]
    assert stored[["ratio", "layer"]].values.tolist() == [*([ratio, 2] for ratio in RATIOS), [0.02, 0]] * 2
    again = [selector for selector, _ in prefills_of(fused)]  # what a record says leads back to the selectors
    assert again == [get_selector(name, **options) for name, options in measured] * 2
    slower = rows[["flop", "bytes"]].mul([1e-9, 1e-6]).max(axis=1)
    assert rows["limit"].tolist() == pytest.approx(slower.tolist())
    assert rows["reached"].tolist() == pytest.approx((rows["limit"] / rows["p50"]).tolist())
    faster = rows["p50"].iloc[:2].min()
    assert (faster / rows["p50"]).tolist() == pytest.approx(rows["speed-up"].tolist())
    assert (rows["p20"] <= rows["p50"]).all()
    assert (rows["p50"] <= rows["p80"]).all()


def test_methods_are_limited_to_selectors_and_ratios():
    every = methods(32)
    assert {name for name, _ in every} == set(SELECTORS)
    assert methods(32, ["full_reuse"]) == [("full_reuse", {})]
    at_two_percent = [(name, options) for name, options in every if options.get("ratio") in (None, 0.02)]
    few = ("epic", "probe", "full_reuse")
    assert methods(32, few, [0.02]) == [method for method in at_two_percent if method[0] in few]
    other = methods(32, ratios=[0.1])  # without what is measured at one ratio only
    assert [options["ratio"] for _, options in other[1:]] == [0.1] * 5


@pytest.mark.parametrize("name", FAMILY)
def test_a_random_model_of_a_shape_runs_like_transformers(name, monkeypatch):
    full_name = next(known for known in SHAPES if name in known.lower())
    small = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    monkeypatch.setitem(random_models.SHAPES, full_name, small | {"num_hidden_layers": 2, "vocab_size": 300})
    model = random_model(name, 200, device="cpu", layers=3).float()
    assert type(model.config) is FAMILY[name]
    assert model.config.num_hidden_layers == 3
    prompt = prompt_of(300, 200, 64)
    everything = fused_prefill(model, prompt, InMemory.computed(model, prompt), get_selector("a3", ratio=1.0))
    expected = model(torch.tensor([prompt.ids])).logits[0, -1]
    torch.testing.assert_close(everything.logits[0], expected, rtol=1e-4, atol=1e-5)


def test_the_shape_of_qwen3_is_that_of_its_published_configuration():
    shape = Shape.of("Qwen/Qwen3-8B")
    assert shape == Shape(
        layers=36, hidden=4096, intermediate=12288, heads=32, kv_heads=8, head_dim=128, vocabulary=151936
    )
    assert shape_of({"parameters": {"shape": "qwen3-8b", "layers": "None"}}) == shape


def test_an_unknown_shape_names_those_that_exist():
    with pytest.raises(ValueError, match="unknown shape 'gpt-2': choose one of llama-3-8b"):
        random_model("gpt-2", 100, device="cpu")
