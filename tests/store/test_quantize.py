"""Quantised formats: errors bounded by the codes' steps, file sizes, and fused prefills close to exact ones."""

import pytest
import torch
from helpers import memory_store, random_prompt, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkv import KVStore, fused_prefill, load_model, precompute
from ragkv.prompt import Segment
from ragkv.selectors import get_selector
from ragkv.store import Layout
from ragkv.store.quantize import CODECS, check_format, dequantize, quantize

# The largest gap between neighbouring codes, relative to the largest number that shares their scale. As scales are
# powers of two, up to half of the codes may be unused; in e4m3 the gap is an eighth of the number, and at least 2**-9.
STEPS = {"fp8": 1 / 8, "int8": 2 / 127, "int4": 2 / 7}


def round_trip(layers, name):
    codes, key_scales, value_scales = quantize(layers, name)
    back = [dequantize(*parts, name, layers.dtype) for parts in zip(codes, key_scales, value_scales, strict=True)]
    return torch.stack(back)


@settings(max_examples=30)
@given(
    name=st.sampled_from(list(CODECS)),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.sampled_from([2, 8, 32])),
    magnitude=st.integers(-20, 20),
    seed=st.integers(0, 999),
)
def test_an_error_is_at_most_half_a_step(name, shape, magnitude, seed):
    layers, kv_heads, tokens, head_dim = shape
    states = torch.randn(layers, 2, kv_heads, tokens, head_dim, generator=torch.Generator().manual_seed(seed))
    states *= 2.0**magnitude
    keys, values = states.unbind(1)
    largest = torch.stack(  # per channel of the keys, per token of the values
        (keys.abs().amax(2, keepdim=True).expand_as(keys), values.abs().amax(3, keepdim=True).expand_as(values)), 1
    )
    assert ((round_trip(states, name) - states).abs() <= largest * STEPS[name] / 2 * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", CODECS)
def test_a_large_channel_of_the_keys_does_not_affect_the_others(name):
    states = torch.randn(1, 2, 1, 16, 8, generator=torch.Generator().manual_seed(0))
    states[:, 0, :, :, 3] *= 1000
    calm = states.clone()
    calm[:, 0, :, :, 3] = 0
    others = [c for c in range(8) if c != 3]
    assert torch.equal(round_trip(states, name)[..., others], round_trip(calm, name)[..., others])


@pytest.mark.parametrize("name", CODECS)
def test_numbers_that_codes_can_represent_are_kept_exactly(name):
    """Small integers and zeros, also multiplied by a power of two."""
    states = torch.randint(-7, 8, (2, 2, 2, 5, 4), generator=torch.Generator().manual_seed(1)).float()
    states[..., 0, :] = 0
    for factor in (1.0, 2.0**-30, 2.0**30):
        assert torch.equal(round_trip(states * factor, name), states * factor)


@pytest.mark.parametrize(("name", "bits"), [("fp8", 8), ("int8", 8), ("int4", 4)])
def test_a_file_holds_the_codes_and_one_byte_per_scale(llama, rng, name, bits):
    prompt, store = random_prompt(rng, chunks=(48,), prefix=None), memory_store()
    small = KVStore(store.url, format=name)
    size = precompute(llama, [prompt], small).bytes
    layout = Layout.of(llama, name)
    numbers = layout.layers * 2 * layout.kv_heads * 48 * layout.head_dim
    scales = layout.layers * layout.kv_heads * (layout.head_dim + 48)
    header = size - (numbers * bits // 8 + scales + 4 * 48)  # surprisal has four bytes per token
    assert 0 < header < 3000


@pytest.mark.parametrize(("name", "worst"), [("fp8", 0.1), ("int8", 0.05), ("int4", 0.8)])
def test_a_fused_prefill_is_close_to_the_one_from_exact_values(model, rng, name, worst):
    prompt, exact = random_prompt(rng), memory_store()
    small = KVStore(exact.url, format=name)
    precompute(model, [prompt], exact)
    precompute(model, [prompt], small)
    selector = get_selector("a3", ratio=0.2)
    from_exact, from_small = (fused_prefill(model, prompt, s, selector).logits for s in (exact, small))
    error = relative_error(from_small, from_exact)
    assert 0 < error < worst


def test_formats_share_a_store_and_are_never_mixed(llama, rng):
    prompt, exact = random_prompt(rng), memory_store()
    precompute(llama, [prompt], exact)
    small = KVStore(exact.url, format="fp8")
    with pytest.raises(RuntimeError, match="not in the store"):
        fused_prefill(llama, prompt, small, get_selector("full_reuse"))
    before = set(exact.keys())
    precompute(llama, [prompt], small)
    assert len(set(small.keys()) - before) == len(before)


def test_quantised_files_are_reproducible_and_verified(llama, rng, tmp_path):
    prompt, contents = random_prompt(rng), []
    for folder in ("a", "b"):
        store = KVStore(tmp_path / folder, format="int8")
        precompute(llama, [prompt], store)
        contents.append({p.name: p.read_bytes() for p in (tmp_path / folder).rglob("*.safetensors")})
    assert contents[0] == contents[1]
    victim = next((tmp_path / "a").rglob("*.safetensors"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    assert precompute(llama, [prompt], KVStore(tmp_path / "a", format="int8")).written == 1


def test_bad_formats_and_values(llama):
    with pytest.raises(ValueError, match="unknown store format 'fp4': choose one of model, fp8, int8, int4"):
        KVStore("memory://x", format="fp4")
    with pytest.raises(ValueError, match="heads of 33 do not fit"):
        check_format("int4", 33)
    layout, segment = Layout.of(llama, "fp8"), Segment((5, 6, 7))
    layers = torch.ones(layout.layers, 2, layout.kv_heads, 3, layout.head_dim)
    for broken in (float("nan"), float("inf")):
        layers[1, 0, 0, 0, 0] = broken
        with pytest.raises(ValueError, match="layer 1 has keys or values that are not finite"):
            memory_store().write(layout, segment, layers, torch.zeros(3))


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen"])
def test_eight_bits_take_half_the_space_of_bfloat16(name, rng):
    """Files of chunks of 64 tokens, with their headers, scales and surprisal."""
    model, _ = load_model(name, device="cpu", dtype="bfloat16")
    prompt = random_prompt(rng, chunks=(64, 64, 64), prefix=None)
    sizes = {f: precompute(model, [prompt], KVStore(memory_store().url, format=f)).bytes for f in ("model", *CODECS)}
    assert sizes["fp8"] <= 0.52 * sizes["model"]
    assert sizes["int8"] <= 0.52 * sizes["model"]
    assert sizes["int4"] <= 0.28 * sizes["model"]
