"""Learned contexts: chunks computed behind them, their files, and their part in what a segment is called."""

import pytest
import torch
from helpers import make_model, memory_store, random_context, random_ids, random_prompt, relative_error
from safetensors.torch import save_file

from ragkv import fused_prefill, precompute
from ragkv.contexts import LearnedContext
from ragkv.contexts.loss import full_prefill, keys_values
from ragkv.contexts.owner import owner, owner_of_folder
from ragkv.models.rotary import Rotary
from ragkv.models.segment_pass import compute_segment
from ragkv.prompt import Segment
from ragkv.selectors import get_selector
from ragkv.store import Layout


def of_tokens(model, ids):
    """The context that real tokens would be: their rotated keys, and values."""
    layers = full_prefill(model, Rotary.of(model, len(ids)), torch.tensor([ids]))
    return LearnedContext(torch.stack([torch.cat((keys, values)) for keys, values in layers]), owner(model))


def test_behind_the_keys_and_values_of_tokens_a_segment_is_what_it_is_behind_the_tokens(model, rng):
    """The definition: a learned context stands where these tokens would."""
    before, context, ids = (tuple(random_ids(rng, length)) for length in (5, 2, 9))
    layers, surprisal = compute_segment(model, Segment(ids, context, of_tokens(model, before)))
    expected_layers, expected_surprisal = compute_segment(model, Segment(ids, before + context))
    assert relative_error(layers, expected_layers) < 1e-5
    assert relative_error(surprisal, expected_surprisal) < 1e-5


def test_training_computes_the_keys_and_values_that_precompute_stores(model, rng):
    context, ids = (1, 8), tuple(random_ids(rng, 11))
    learned = random_context(model)
    stored, _ = compute_segment(model, Segment(ids, context, learned))
    trained = keys_values(model, Rotary.of(model, 64), torch.tensor([context + ids]), learned.layers, len(context))
    for (keys, values), layer in zip(trained, stored, strict=True):
        assert relative_error(torch.cat((keys, values)), layer) < 1e-5


@pytest.mark.parametrize("name", ["full_reuse", "a3", "probe", "cacheblend"])
@pytest.mark.parametrize("behind_prefix", [False, True])
def test_a_prefill_reuses_chunks_behind_the_context_and_is_exact_at_ratio_1(model, rng, name, behind_prefix):
    prompt, store = random_prompt(rng), memory_store()
    placed = (prompt.behind_prefix() if behind_prefix else prompt).behind(random_context(model))
    precompute(model, [placed, prompt], store)
    full = fused_prefill(model, prompt, None, get_selector("full_prefill")).logits
    if name == "full_reuse":
        plain, learned = (fused_prefill(model, p, store, get_selector(name)).logits for p in (prompt, placed))
        assert relative_error(learned, plain) > 1e-3
    else:
        exact = fused_prefill(model, placed, store, get_selector(name, ratio=1.0)).logits
        assert relative_error(exact, full) < 1e-5


def test_the_context_is_part_of_a_segments_name(llama, rng):
    """Segments behind different contexts never meet; behind equal ones they are the same."""
    ids, layout = tuple(random_ids(rng, 7)), Layout.of(llama)
    first, same, other = (random_context(llama, seed=seed) for seed in (0, 0, 1))
    keys = [layout.key(Segment(ids, (1,), learned)) for learned in (None, first, same, other)]
    assert keys[1] == keys[2]
    assert len(set(keys)) == 3
    assert Segment(ids, (1,), first) == Segment(ids, (1,), same) != Segment(ids, (1,), other)
    assert len({Segment(ids, (1,), first), Segment(ids, (1,), same), Segment(ids, (1,))}) == 2


def test_a_context_is_read_as_it_was_written(llama, tmp_path):
    context = random_context(llama)
    context.save(tmp_path / "c.safetensors", steps="12")
    assert LearnedContext.load(tmp_path / "c.safetensors", llama) == context


def test_a_missing_foreign_or_damaged_file_is_one_clear_error(llama, tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(ValueError, match=r"there is no learned context .*ragkv context train"):
        LearnedContext.load(path, llama)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="cannot be read as a learned context"):
        LearnedContext.load(path, llama)
    random_context(llama).save(path)
    with pytest.raises(ValueError, match="trained for another model"):
        LearnedContext.load(path, make_model("llama", seed=1))
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="is damaged"):
        LearnedContext.load(path, llama)


def test_a_context_belongs_to_the_models_weights_in_float32_and_in_bfloat16(tmp_path):
    model = make_model("qwen3", seed=4).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="40kB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    names = {owner_of_folder(tmp_path / folder) for folder in ("whole", "shards")}
    names |= {owner(model), owner(model.float())}
    assert len(names) == 1
    with torch.no_grad():
        model.model.layers[-1].self_attn.v_proj.weight[0, 3] += 0.5
    assert owner(model) not in names


def test_a_folder_without_a_known_models_tensors_has_no_owner(tmp_path):
    assert owner_of_folder(tmp_path) is None
    save_file({"transformer.wte": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert owner_of_folder(tmp_path) is None


def test_a_context_counts_among_the_positions_that_a_segment_takes(llama, rng):
    prompt = random_prompt(rng, chunks=(100,))
    long = random_context(llama, tokens=500)
    with pytest.raises(ValueError, match="601 tokens, more than the model's 512"):
        precompute(llama, [prompt.behind(long)], memory_store())
