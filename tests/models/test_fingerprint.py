"""The fingerprint follows everything that decides a model's keys and values, and nothing else."""

import gc
import weakref

import pytest
import torch
from adapters import Int8Linear, Lora, ScaledTensor, replace
from helpers import FAMILIES, ROPES, SEGMENT, fuse, make_model, memory_store, random_prompt, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

from ragkv import fused_prefill, precompute
from ragkv.models import fingerprint as module
from ragkv.models.fingerprint import fingerprint
from ragkv.models.segment_pass import compute_segment
from ragkv.selectors import get_selector
from ragkv.store import StoreError


def train(model, weights, optimizer=torch.optim.AdamW, **options):
    """One step of an optimiser, with a made-up gradient."""
    for weight in weights:
        weight.requires_grad_(True)
        weight.grad = torch.randn_like(weight)
    optimizer(weights, lr=0.05, **options).step()
    model.requires_grad_(False)


def double(tensor):
    """Change a tensor in place without raising its version."""
    version = tensor._version
    tensor.data.mul_(2)
    assert tensor._version == version


def set_rope(model):
    model.config.rope_parameters = ROPES["yarn"]


CHANGES = {
    "a fused optimiser": lambda model: train(model, list(model.parameters()), fused=True),
    "an optimiser": lambda model: train(model, [model.model.layers[1].mlp.up_proj.weight]),
    "data of one weight": lambda model: double(model.model.layers[2].self_attn.k_proj.weight),
    "data replaced": lambda model: setattr(model.lm_head.weight, "data", model.lm_head.weight.data * 2),
    "a parameter replaced": lambda model: setattr(model.lm_head, "weight", nn.Parameter(model.lm_head.weight * 2)),
    "a module replaced": lambda model: setattr(model, "lm_head", nn.Linear(64, 200, bias=False)),
    "layers exchanged": lambda model: model.model.layers.insert(0, model.model.layers.pop(1)),
    "a layer dropped": lambda model: model.model.layers.__delitem__(2),
    "an activation": lambda model: setattr(model.model.layers[0].mlp, "act_fn", nn.GELU().eval()),
    "frequencies": lambda model: double(model.model.rotary_emb.inv_freq),
    "frequencies in bfloat16": lambda model: model.model.rotary_emb.to(torch.bfloat16),
    "scaling of cos and sin": lambda model: setattr(model.model.rotary_emb, "attention_scaling", 1.5),
    "scaling of attention": lambda model: setattr(model.model.layers[1].self_attn, "scaling", 1.0),
    "epsilon of a norm": lambda model: setattr(model.model.norm, "variance_epsilon", 0.1),
    "epsilon in the configuration": lambda model: setattr(model.config, "rms_norm_eps", 0.1),
    "rope in the configuration": set_rope,
    "rope changed in its dictionary": lambda model: model.config.rope_parameters.update(rope_theta=500.0),
    "norm of embeddings": lambda model: setattr(model.model.embed_tokens, "max_norm", 1.0),
    "another dtype": lambda model: model.to(torch.bfloat16),
    "a compiled model's weight": lambda model: double(torch.compile(model).model.norm.weight),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_memory_is_seen(change):
    model = make_model("llama")
    before = fingerprint(model)
    with torch.no_grad() if "optimiser" not in change else torch.enable_grad():
        CHANGES[change](model)
    after = fingerprint(model)
    assert after != before
    assert after == fingerprint(model, fresh=True)


def test_a_change_of_weights_without_versions_is_seen():
    with torch.inference_mode():
        model = make_model("llama")
    before = fingerprint(model)
    with torch.inference_mode():
        model.model.norm.weight.mul_(2)
    assert fingerprint(model) != before


def test_stored_values_never_meet_a_model_that_a_fused_optimiser_changed(rng):
    model, prompt, store = make_model("llama"), random_prompt(rng), memory_store()
    precompute(model, [prompt], store)
    train(model, list(model.parameters()), fused=True)
    with pytest.raises(StoreError, match="another model"):
        fused_prefill(model, prompt, store, get_selector("full_reuse"))
    assert precompute(model, [prompt], store).written == 4
    reused = fused_prefill(model, prompt, store, get_selector("full_reuse"))
    assert relative_error(reused.logits, fuse(model, prompt, "full_reuse").logits) <= 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reloaded_model_is_the_same(family, tmp_path):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    first = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    second = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", device_map="cpu")
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert fingerprint(model) == fingerprint(first) == fingerprint(second) != fingerprint(half)


def test_what_changes_no_keys_and_values_changes_no_fingerprint(llama):
    model = make_model("llama")
    expected = fingerprint(llama)
    model.generation_config.eos_token_id = 7
    model.config.use_cache = False
    model.requires_grad_(True)
    model.model.gradient_checkpointing = True  # without an effect in evaluation mode
    model.note = "mine"
    assert fingerprint(model) == expected
    model.model.gradient_checkpointing = False
    assert fingerprint(model.train()) == expected  # no dropout
    model(input_ids=torch.tensor([[5]]), output_attentions=True, output_hidden_states=True)  # leaves hooks that record
    assert fingerprint(model) == expected
    model.model.layers[1] = torch.compile(model.model.layers[1])
    model.forward = torch.compile(model.forward)
    assert fingerprint(model) == expected


def test_frequencies_may_differ_by_rounding(llama):
    model = make_model("llama")
    with torch.no_grad():
        frequencies = model.model.rotary_emb.inv_freq
        frequencies.copy_(torch.nextafter(frequencies, frequencies * 2))
    assert fingerprint(model) == fingerprint(llama)


@settings(max_examples=60)
@given(st.data())
def test_any_flipped_bit_is_another_model(data):
    model = make_model("qwen3", num_hidden_layers=1, vocab_size=30, hidden_size=8, intermediate_size=6)
    if data.draw(st.booleans()):
        model = model.to(torch.bfloat16)
    before = fingerprint(model)
    tensors = [item for name, item in model.named_parameters()]
    tensor = data.draw(st.sampled_from(tensors))
    bits = tensor.data.view(-1).view(torch.uint8)
    place, bit = data.draw(st.integers(0, len(bits) - 1)), data.draw(st.integers(0, 7))
    bits[place] ^= 1 << bit
    assert fingerprint(model, fresh=True) != before
    bits[place] ^= 1 << bit
    assert fingerprint(model, fresh=True) == before


def test_numbers_that_are_none_are_compared_by_their_bits():
    model = make_model("llama")
    model.model.norm.weight.fill_(float("nan"))
    before = fingerprint(model)
    assert fingerprint(model) == before
    model.model.norm.weight.data.view(torch.int32).bitwise_xor_(1)  # another NaN
    assert fingerprint(model) != before


def test_weights_with_equal_sums_differ():
    model = make_model("llama")
    before = fingerprint(model)
    weight = model.lm_head.weight.data
    weight[:, [0, 1]] = weight[:, [1, 0]].clone()
    assert fingerprint(model, fresh=True) != before


def test_a_tensor_of_any_dtype_and_layout_in_memory_is_read():
    model = make_model("llama")
    hashes = set()
    projection = replace(model, "q_proj", Int8Linear)
    for dtype in (torch.bool, torch.uint8, torch.float8_e4m3fn, torch.float16, torch.float64, torch.complex64):
        projection.register_buffer("extra", torch.ones(64, 1).to(dtype))
        hashes.add(fingerprint(model))
    for other in (torch.ones(64, 2)[:, :1], torch.ones(1, 64).T, torch.tensor(1.0), torch.ones(0)):
        projection.register_buffer("extra", other)
        hashes.add(fingerprint(model))
    assert len(hashes) == 9  # the first two of the last four have the same numbers


def test_only_what_changed_is_hashed_again(monkeypatch):
    model, hashed = make_model("llama"), []
    digest = module._digest
    monkeypatch.setattr(module, "_digest", lambda tensor: hashed.append(tensor) or digest(tensor))
    before = fingerprint(model)
    assert len(hashed) == len({id(tensor) for tensor in [*model.parameters(), *model.buffers()]})
    hashed.clear()
    assert fingerprint(model) == before
    assert hashed == []
    lora = replace(model, "v_proj", Lora)
    fingerprint(model)
    assert len(hashed) == 4
    hashed.clear()
    lora.enabled = False
    fingerprint(model)
    assert hashed == []
    double(model.model.norm.weight)
    fingerprint(model)
    assert [id(tensor) for tensor in hashed] == [id(model.model.norm.weight)]


def test_a_fingerprint_keeps_no_model_and_no_replaced_weight_alive():
    model = make_model("llama")
    fingerprint(model)
    weight, layer, whole = (weakref.ref(item) for item in (model.lm_head.weight, model.model.layers[2], model))
    model.lm_head.weight = nn.Parameter(torch.zeros(200, 64))
    del model.model.layers[2]
    gc.collect()
    assert weight() is layer() is None
    del model
    gc.collect()
    assert whole() is None


def test_weights_can_still_be_swapped():
    """PyTorch swaps quantised weights when it moves them, and refuses those that have weak references."""
    model = make_model("llama")
    fingerprint(model)
    first, second = model.model.layers[0].self_attn.q_proj.weight, model.model.layers[1].self_attn.q_proj.weight
    before = fingerprint(model)
    torch.utils.swap_tensors(first, second)
    assert fingerprint(model) != before


ADAPTER = {
    "scaled": lambda lora: lora.scaling.update(first=2.0),
    "switched": lambda lora: lora.active.__setitem__(0, "second"),
    "stacked": lambda lora: lora.active.append("second"),
    "disabled": lambda lora: setattr(lora, "enabled", False),
    "trained": lambda lora: double(lora.up["first"]),
    "replaced": lambda lora: lora.up.update({"first": torch.ones(32, 4)}),
    "of a class that changed": lambda lora: setattr(type(lora), "gain", 2.0),
}


@pytest.mark.parametrize("change", ADAPTER)
def test_an_adapter_is_part_of_the_model(llama, change):
    model, kind = make_model("llama"), type("Changing", (Lora,), {})
    lora = replace(model, "v_proj", kind)
    plain, before = fingerprint(llama), fingerprint(model)
    ADAPTER[change](lora)
    after = fingerprint(model)
    assert len({plain, before, after, fingerprint(make_model("llama"))}) == 3
    assert after == fingerprint(model, fresh=True)
    model.model.layers[1].self_attn.v_proj = lora.base
    assert fingerprint(model) == plain


def test_an_adapter_that_is_switched_back_is_the_same_again():
    model = make_model("llama")
    lora = replace(model, "v_proj", Lora)
    before = fingerprint(model)
    for change, undo in (("active", ["second"]), ("enabled", False), ("scaling", {"first": 3.0, "second": 0.5})):
        old = getattr(lora, change)
        setattr(lora, change, undo)
        assert fingerprint(model) != before
        setattr(lora, change, old)
        assert fingerprint(model) == before


def test_one_adapters_values_never_serve_another(rng):
    model, prompt, store = make_model("llama"), random_prompt(rng), memory_store()
    lora = replace(model, "v_proj", Lora)
    computed = {}
    for name in ("first", "second"):
        lora.active = [name]
        assert precompute(model, [prompt], store).written == 4
        computed[name] = fused_prefill(model, prompt, store, get_selector("full_reuse")).logits
    assert relative_error(computed["first"], computed["second"]) > 1e-3
    lora.active = ["first"]
    again = fused_prefill(model, prompt, store, get_selector("full_reuse")).logits
    assert torch.equal(again, computed["first"])


@pytest.mark.parametrize("part", ["weight", "scale"])
def test_quantised_numbers_and_their_scales_are_part_of_the_model(part):
    model = make_model("qwen2")
    projection = replace(model, "k_proj", Int8Linear)
    before = fingerprint(model)
    layers, _ = compute_segment(model, SEGMENT)
    getattr(projection, part).data.neg_()
    assert fingerprint(model) != before
    assert relative_error(compute_segment(model, SEGMENT)[0], layers) > 1e-3


@pytest.mark.parametrize("part", ["numbers", "scale", "block"])
def test_a_tensor_that_is_made_of_others_is_read_whole(part):
    def quantised():
        model = make_model("llama")
        projection = model.model.layers[1].self_attn.k_proj
        numbers, scale = (projection.weight * 10).round().to(torch.int8), torch.full((32, 1), 0.1)
        projection.weight = nn.Parameter(ScaledTensor(numbers, scale), requires_grad=False)
        return model, projection.weight

    (model, weight), (other, _) = quantised(), quantised()
    before = fingerprint(model)
    assert fingerprint(other) == before
    assert relative_error(compute_segment(model, SEGMENT)[0], compute_segment(other, SEGMENT)[0]) == 0
    if part == "block":
        weight.block[0] = 2
    else:
        getattr(weight, part).data.neg_()
    assert fingerprint(model) != before


def test_an_adapter_of_peft_is_part_of_the_model(rng):
    peft = pytest.importorskip("peft")
    options = {"target_modules": ["v_proj", "up_proj"], "init_lora_weights": False}
    wrapped = peft.get_peft_model(make_model("llama"), peft.LoraConfig(r=4, lora_alpha=8, **options))
    wrapped.add_adapter("other", peft.LoraConfig(r=2, lora_alpha=2, **options))
    model = wrapped.get_base_model().eval()
    seen = [fingerprint(model)]
    projection = model.model.layers[0].self_attn.v_proj
    projection.set_scale("default", 3.0)
    seen.append(fingerprint(model))
    projection.set_scale("default", 1.0)
    assert fingerprint(model) == seen[0]
    with wrapped.disable_adapter():
        seen.append(fingerprint(model))
    assert fingerprint(model) == seen[0]
    wrapped.set_adapter("other")
    seen.append(fingerprint(model.eval()))
    wrapped.merge_adapter()
    seen.append(fingerprint(model))
    wrapped.unmerge_adapter()
    wrapped.set_adapter("default")
    prompt = random_prompt(rng)
    full = model(input_ids=torch.tensor([prompt.ids])).logits[:, -1]
    assert relative_error(fuse(model.eval(), prompt, "a3", ratio=1.0).logits, full) <= 1e-5
    seen.append(fingerprint(wrapped.merge_and_unload()))
    assert len(set(seen)) == len(seen)
