"""A decoder layer in steps, and keys that are rotated to where they stand, against transformers' own code."""

from importlib.util import find_spec

import pytest
import torch
from helpers import FAMILIES, ROPES, make_model, relative_error
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ragkv.models import decoder
from ragkv.models.attention import sdpa
from ragkv.models.rotary import Rotary

CPU = torch.device("cpu")


@pytest.mark.parametrize("rope", ROPES)
def test_stored_keys_rotate_to_where_they_would_be_computed(rope):
    model = make_model("llama", rope_parameters=ROPES[rope])
    attention = model.model.layers[0].self_attn
    hidden = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(300, 309)
    keys = attention.k_proj(hidden).view(1, 9, 2, 16).transpose(1, 2)
    cos, sin = model.model.rotary_emb(hidden, positions[None])
    _, there = apply_rotary_pos_emb(keys, keys, cos, sin)

    stored, _ = decoder.keys_values(attention, hidden)
    rotary = Rotary.of(model, 309)[0]
    assert relative_error(rotary(stored, positions), there) <= 1e-5
    assert relative_error(rotary(stored, slice(300, 309)), there) <= 1e-5
    assert relative_error(rotary(stored, slice(9)), there) > 1e-2  # the place matters


def test_rope_types_differ_from_each_other():
    cosines = [Rotary.of(make_model("llama", rope_parameters=ROPES[rope]), 300)[0].on(CPU)[0] for rope in ROPES]
    assert all(not torch.allclose(a, b) for i, a in enumerate(cosines) for b in cosines[:i])


def test_rotation_is_done_in_float32_and_keeps_the_dtype(llama):
    states = torch.randn(1, 2, 200, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    rotary = Rotary.of(llama, 200)[0]
    rotated = rotary(states, slice(None))
    assert rotated.dtype == torch.bfloat16
    assert torch.equal(rotated, rotary(states.float(), slice(None)).bfloat16())


def ropes(family):
    """The types of rotary embedding that transformers' own configuration of a family allows."""
    return ["default"] if family in ("phi3", "gemma3_text") else list(ROPES)


CASES = [(family, rope, False) for family in FAMILIES for rope in ropes(family)]
CASES += [(family, "default", True) for family in FAMILIES]


@pytest.mark.parametrize(("family", "rope", "kernels"), CASES)
def test_a_layer_in_steps_is_the_layers_own_forward(family, rope, kernels, monkeypatch):
    """With plain PyTorch, and with the kernels, which Triton's interpreter runs."""
    if kernels and (torch.cuda.is_available() or find_spec("triton") is None):
        pytest.skip("Triton's interpreter is not there")
    for module in ("decoder", "rotary"):
        monkeypatch.setattr(f"ragkv.models.{module}.kernels_run", lambda device: kernels)
    model = make_model(family, **({} if rope == "default" else {"rope_parameters": ROPES[rope]}))
    hidden = torch.randn(1, 11, 64, generator=torch.Generator().manual_seed(2))
    positions = torch.arange(11)
    mask = torch.full((11, 11), float("-inf")).triu(1)[None, None]
    model.config._attn_implementation = "eager"
    kinds = [(kind,) for kind in model.config.layer_types] if family == "gemma3_text" else [()] * 3
    for layer, rotary, kind in zip(model.model.layers, Rotary.of(model, 11), kinds, strict=True):
        angles = model.model.rotary_emb(hidden, positions[None], *kind)
        expected = layer(hidden, attention_mask=mask, position_embeddings=angles)

        def place(fresh, rotary=rotary):
            keys, values = fresh
            return rotary(keys, positions), values

        found, left = decoder.run_layer(layer, hidden, positions, rotary, place, sdpa)
        assert relative_error(found, expected) <= 1e-5
        assert torch.equal(left, positions)
        hidden = expected
