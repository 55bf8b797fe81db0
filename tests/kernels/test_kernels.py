"""The Triton kernels against their plain versions, under Triton's interpreter where there is no GPU."""

from itertools import accumulate

import pytest
import torch
from helpers import relative_error
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ragkv.fusion.cache import write as plain_write
from ragkv.models.attention import attention_weights, get_backend
from ragkv.models.rotary import Rotary

pytest.importorskip("triton", reason="Triton is not installed")
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from ragkv.kernels import one_token
from ragkv.kernels.attention import position_causal
from ragkv.kernels.elementwise import gated, rms_norm, rotate
from ragkv.kernels.placing import placing, write
from ragkv.kernels.scores import attention_scores
from ragkv.kernels.tiles import Config, config, fitting
from ragkv.kernels.unpacking import unpacking
from ragkv.store.quantize import CODECS, dequantize, quantize

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the compiled kernels")
pytestmark = CPU_ONLY
SMALL = Config(16, 16, 4, 2)  # several tiles and blocks even for a few tokens
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3}  # the interpreter cannot multiply in bfloat16; tests/gpu can


def dense(query, key, value, positions, scaling):
    """All products at once, in float64."""
    group = query.shape[1] // key.shape[1]
    keys, values = (states.double().repeat_interleave(group, dim=1) for states in (key, value))
    products = query.double() @ keys.mT * scaling
    future = positions[:, None] < torch.arange(key.shape[2])
    weights = products.masked_fill(future, float("-inf")).softmax(-1)
    return weights @ values, weights


@st.composite
def cases(draw):
    tokens = draw(st.integers(1, 70))
    positions = sorted(draw(st.sets(st.integers(0, tokens - 1), min_size=1, max_size=25)))
    kv_heads, group = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3, 7]))
    head_dim = draw(st.sampled_from([32, 48, 64, 80, 128]))
    return tokens, positions, kv_heads, group, head_dim, draw(st.sampled_from(list(BOUNDS))), draw(st.integers(0, 99))


def states(case):
    tokens, positions, kv_heads, group, head_dim, dtype, seed = case
    random = torch.Generator().manual_seed(seed)
    query = torch.randn(1, len(positions), kv_heads * group, head_dim, generator=random).to(dtype).transpose(1, 2)
    key, value = torch.randn(2, 1, kv_heads, tokens, head_dim, generator=random).to(dtype)
    return query, key, value, torch.tensor(positions)


@pytest.mark.parametrize("memory", [232448, 166912, 101376, 65536, 49152])  # H100, A100, RTX 4090, T4, smaller
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [32, 80, 128, 256])
def test_tiles_fit_into_shared_memory(memory, dtype, head_dim):
    wanted = config(head_dim, dtype)
    chosen = fitting(wanted, head_dim, dtype, memory)
    row = 2 ** (head_dim - 1).bit_length() * dtype.itemsize
    assert (chosen.rows + 2 * chosen.stages * chosen.keys) * row <= memory
    if (wanted.rows + 2 * wanted.stages * wanted.keys) * row <= memory:
        assert chosen == wanted


@settings(max_examples=12)
@given(cases())
@example((70, list(range(70)), 1, 2, 32, torch.float32, 0))
@example((65, [64], 2, 7, 256, torch.float16, 1))
@example((33, [0], 1, 1, 96, torch.float16, 2))
def test_attention_equals_a_dense_softmax(case):
    query, key, value, positions = states(case)
    expected, _ = dense(query, key, value, positions, 0.4)
    found = position_causal(query, key, value, positions, 0.4, tuned=SMALL)
    assert found.dtype == query.dtype
    assert relative_error(found, expected) <= BOUNDS[query.dtype]


@settings(max_examples=8)
@given(cases(), st.sampled_from([1.0, 2.0]))
@example((200, [3, 190, 199], 1, 2, 32, torch.float32, 0), 2.0)
def test_scores_equal_the_sum_of_dense_weights(case, power):
    query, key, value, positions = states(case)
    expected, weights = dense(query, key, value, positions, 0.4)
    none, found = attention_scores(query, key, None, positions, 0.4, power, tuned=SMALL)
    attended, same = attention_scores(query, key, value, positions, 0.4, power, tuned=SMALL)
    assert none is None
    assert torch.equal(found, same)
    assert relative_error(attended, expected) <= BOUNDS[query.dtype]
    assert relative_error(found, weights.pow(power).sum(2)[0]) <= 1e-4
    assert relative_error(found, attention_weights(query, key, positions, 0.4, power)) <= 1e-4


@settings(max_examples=8)
@given(cases(), st.integers(1, 40), st.integers(0, 30))
def test_padding_changes_no_other_row(case, pads, free):
    """Neither queries at position -1 nor other keys in free slots behind the last token change the results."""
    query, key, value, positions = states(case)
    padded = torch.cat((torch.ones_like(query[:, :, :1]).expand(-1, -1, pads, -1), query), dim=2)
    longer = [
        torch.cat((part, 3 * torch.ones_like(part[:, :, :1]).expand(-1, -1, free, -1)), dim=2) for part in (key, value)
    ]
    padded_positions = torch.cat((torch.full((pads,), -1), positions))
    attended, scores = attention_scores(padded, *longer, padded_positions, 0.4, 2.0, tuned=SMALL)
    expected, weights = dense(query, key, value, positions, 0.4)
    assert attended.isfinite().all()
    assert (scores[:, key.shape[2] :] == 0).all()
    assert relative_error(attended[:, :, pads:], expected) <= BOUNDS[query.dtype]
    assert relative_error(scores[:, : key.shape[2]], weights.square().sum(2)[0]) <= 1e-4
    assert position_causal(padded, *longer, padded_positions, 0.4, tuned=SMALL).isfinite().all()


@st.composite
def packed(draw):
    """Several prompts whose keys lie end to end: the tokens of each, and those whose queries are computed."""
    prompts = []
    for _ in range(draw(st.integers(1, 4))):
        tokens = draw(st.integers(1, 70))
        prompts.append((tokens, sorted(draw(st.sets(st.integers(0, tokens - 1), max_size=25)))))
    kv_heads, group = draw(st.integers(1, 2)), draw(st.sampled_from([1, 3, 4]))
    return prompts, kv_heads, group, draw(st.integers(0, 20)), draw(st.integers(0, 99))


@settings(max_examples=20)
@given(packed())
@example(([(200, [0, 150, 199]), (1, [0]), (300, [5, 299])], 2, 4, 3, 0))  # parts, and a tile with all three
@example(([(5, []), (9, [8]), (4, [])], 1, 1, 0, 1))
@example(([(40, [*range(40)]), (70, [*range(70)])], 1, 1, 0, 2))  # a block of keys of both, seen by several tiles
def test_prompts_whose_keys_lie_end_to_end_do_not_see_each_other(case):
    """As each on its own: attention, and the sums of its weights; with padding, too."""
    prompts, kv_heads, group, pads, seed = case
    random = torch.Generator().manual_seed(seed)
    count = sum(len(positions) for _, positions in prompts)
    if count == 0:
        return
    query = torch.randn(1, kv_heads * group, pads + count, 32, generator=random)
    key, value = torch.randn(2, 1, kv_heads, sum(tokens for tokens, _ in prompts), 32, generator=random)
    slots, firsts, attended, scores = [-1] * pads, [0] * pads, [], []
    start = 0
    for tokens, positions in prompts:
        queries = query[:, :, len(slots) : len(slots) + len(positions)]
        slots += [start + position for position in positions]
        firsts += [start] * len(positions)
        own = slice(start, start + tokens)
        expected, weights = dense(queries, key[:, :, own], value[:, :, own], torch.tensor(positions).long(), 0.4)
        attended.append(expected)
        scores.append(weights.square().sum(2)[0])
        start += tokens
    slots, firsts = torch.tensor(slots), torch.tensor(firsts)
    found = position_causal(query, key, value, slots, 0.4, firsts=firsts, tuned=SMALL)
    same, sums = attention_scores(query, key, value, slots, 0.4, 2.0, firsts=firsts, tuned=SMALL)
    assert found.isfinite().all()
    assert torch.equal(found, same)
    assert relative_error(found[:, :, pads:], torch.cat(attended, dim=2)) <= 1e-5
    assert relative_error(sums, torch.cat(scores, dim=1)) <= 1e-4


HEADS = [(8, 8), (32, 32), (80, 80), (80, 24), (8, 2)]  # dimensions of a head, and how many of them are rotated


def angles(random, positions, rotated):
    """Cosines and sines of this many positions."""
    half = torch.rand(positions, rotated // 2, generator=random) * 6
    return [f(torch.cat((half, half), 1))[None] for f in (torch.cos, torch.sin)]


@settings(max_examples=15)
@given(
    count=st.integers(0, 40),
    kv_heads=st.integers(1, 3),
    dims=st.sampled_from(HEADS),
    dtype=st.sampled_from(list(BOUNDS)),
    seed=st.integers(0, 99),
)
def test_writing_rotates_as_the_plain_version(count, kv_heads, dims, dtype, seed):
    random, (head_dim, rotated) = torch.Generator().manual_seed(seed), dims
    cos, sin = angles(random, 50, rotated)
    fresh = torch.randn(1, count, 2 * kv_heads, head_dim, generator=random).to(dtype).transpose(1, 2).chunk(2, dim=1)
    positions, slots = (torch.randperm(50, generator=random)[:count] for _ in range(2))
    before = torch.randn(2, 1, kv_heads, 50, head_dim, generator=random).to(dtype)
    mine, plain = before.clone(), before.clone()
    write(tuple(mine), fresh, cos, sin, positions, slots)
    plain_write(tuple(plain), fresh, Rotary(cos, sin), positions, slots)
    torch.testing.assert_close(mine, plain, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-5)
    untouched = torch.ones(50, dtype=torch.bool).index_fill(0, slots, False)
    assert torch.equal(mine[:, :, :, untouched], before[:, :, :, untouched])


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    kv_heads=st.integers(1, 2),
    dims=st.sampled_from(HEADS),
    alike=st.booleans(),
    dtype=st.sampled_from(list(BOUNDS)),
    source=st.integers(0, 1),
    seed=st.integers(0, 99),
)
def test_segments_are_placed_side_by_side(lengths, kv_heads, dims, alike, dtype, source, seed):
    """Several layers at once, whose rotary embeddings may be alike."""
    random, tokens, (head_dim, rotated) = torch.Generator().manual_seed(seed), sum(lengths), dims
    by_layer = [angles(random, tokens, rotated)] * 3 if alike else [angles(random, tokens, rotated) for _ in range(3)]
    segments = [torch.randn(3, 2, kv_heads, length, head_dim, generator=random).to(dtype) for length in lengths]
    mine, plain = torch.zeros(2, 3, 2, 1, kv_heads, tokens + 2, head_dim, dtype=dtype)
    firsts = [*accumulate(lengths, initial=0)][:-1]
    place = placing(segments, firsts, firsts, [tuple(layer) for layer in mine], by_layer)
    place(range(1, 3), source)
    order = torch.arange(tokens)
    for layer in (1, 2):
        keys, values = torch.cat([states[layer - 1 + source] for states in segments], dim=2)[:, None]
        plain_write(tuple(plain[layer]), (keys, values), Rotary(*by_layer[layer]), order, order)
    torch.testing.assert_close(mine, plain, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-5)


def test_segments_are_placed_in_their_prompts():
    """Those of the second prompt begin at position 0 again, behind the first prompt, of which a part is left out."""
    random = torch.Generator().manual_seed(0)
    rotary = angles(random, 60, 16)
    segments = [torch.randn(1, 2, 2, length, 16, generator=random) for length in (33, 5, 40)]
    before = torch.randn(2, 1, 2, 100, 16, generator=random)
    mine, plain = before.clone(), before.clone()
    positions, slots = [0, 33, 0], [0, 33, 50]
    placing(segments, positions, slots, [tuple(mine)], [rotary])(range(1), 0)
    for segment, position, slot in zip(segments, positions, slots, strict=True):
        order = torch.arange(segment.shape[3])
        plain_write(tuple(plain), tuple(segment[0][:, None]), Rotary(*rotary), order + position, order + slot)
    torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(mine[:, :, :, 38:50], before[:, :, :, 38:50])


@settings(max_examples=25)
@example(lengths=[33, 1], kv_heads=1, head_dim=80, dtype=torch.bfloat16, format="fp8", count=2, adjacent=True, seed=0)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    kv_heads=st.integers(1, 2),
    head_dim=st.sampled_from([8, 80]),
    dtype=st.sampled_from([*BOUNDS, torch.bfloat16]),
    format=st.sampled_from(sorted(CODECS)),
    count=st.integers(1, 2),
    adjacent=st.booleans(),
    seed=st.integers(0, 99),
)
def test_unpacking_gives_the_bits_of_dequantize(lengths, kv_heads, head_dim, dtype, format, count, adjacent, seed):
    random, layers = torch.Generator().manual_seed(seed), 2
    codes, expected = [], []
    for length in lengths:
        exact = torch.randn(layers, 2, kv_heads, length, head_dim, generator=random)
        packed, *scales = quantize(exact * 10 ** (torch.rand(exact.shape, generator=random) * 8 - 6), format)
        codes.append(torch.cat([part.flatten(1).view(torch.uint8) for part in (packed, *scales)], 1))
        some = [dequantize(packed[i], *(s[i] for s in scales), format, dtype) for i in range(count)]
        expected.append(torch.stack(some))
    sizes = [layers * 2 * kv_heads * length * head_dim for length in lengths]
    slices = torch.zeros(sum(sizes), dtype=dtype).split(sizes)
    numbers = [part.view(layers, 2, kv_heads, n, head_dim) for part, n in zip(slices, lengths, strict=True)]
    if adjacent:  # each layer of all segments in one row
        arrived = torch.cat(codes, 1).split([part.shape[1] for part in codes], 1)
    else:
        flat = torch.cat([part.flatten() for part in codes]).split([part.numel() for part in codes])
        arrived = [part.view(layers, -1) for part in flat]
    unpacking(arrived, numbers, format, CODECS[format].packed)(count)
    for found, wanted in zip(numbers, expected, strict=True):
        assert torch.equal(found[:count], wanted)
        assert not found[count:].any()  # layers that were not unpacked


@settings(max_examples=15)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 40),
    heads=st.integers(1, 3),
    dims=st.sampled_from(HEADS),
    dtype=st.sampled_from(list(BOUNDS)),
    seed=st.integers(0, 99),
)
def test_rotation_equals_the_plain_one(batch, tokens, heads, dims, dtype, seed):
    random, (head_dim, rotated) = torch.Generator().manual_seed(seed), dims
    cos, sin = angles(random, 99, rotated)
    positions = torch.randperm(99, generator=random)[:tokens]
    states = torch.randn(batch, tokens, heads, head_dim, generator=random).to(dtype).transpose(1, 2)
    found = rotate(states, cos, sin, positions)
    assert relative_error(found, Rotary(cos, sin)(states, positions)) <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("width", [1, 64, 100, 4096])
def test_norms_equal_those_of_transformers(width, dtype):
    module = LlamaRMSNorm(width, eps=1e-5).to(dtype)
    module.weight.data.normal_()
    hidden = (torch.randn(2, 3, width) * 5).to(dtype)
    assert relative_error(rms_norm(hidden, module.weight, 1e-5), module(hidden)) <= BOUNDS[dtype]


def test_norms_round_where_those_of_transformers_do():
    """Nearly all bits are the same, and are not if the rounding is another family's."""
    hidden = (torch.randn(20, 500) * 5).half()
    for kind, rounds_once, offset in (
        (LlamaRMSNorm, False, 0.0),
        (Olmo2RMSNorm, True, 0.0),
        (Gemma3RMSNorm, True, 1.0),
    ):
        module = kind(500, eps=1e-5).half().requires_grad_(False)
        module.weight.normal_()
        right = rms_norm(hidden, module.weight, 1e-5, rounds_once=rounds_once, offset=offset)
        wrong = rms_norm(hidden, module.weight + offset, 1e-5, rounds_once=not rounds_once)
        assert (right != module(hidden)).float().mean() < 0.01
        assert (wrong != module(hidden)).float().mean() > 0.05


@pytest.mark.parametrize("dtype", BOUNDS)
def test_gates_equal_the_plain_ones(dtype):
    separate = (torch.randn(2, 2, 5, 1000) * 4).to(dtype)
    halves = (torch.randn(2, 5, 2000) * 4).to(dtype).chunk(2, -1)  # of one fused projection
    one_row = (torch.randn(1, 1, 2000) * 4).to(dtype).chunk(2, -1)
    for gate, up in (separate, halves, one_row):
        assert relative_error(gated(gate, up), torch.nn.functional.silu(gate) * up) <= BOUNDS[dtype]


@settings(max_examples=15)
@given(
    width=st.sampled_from([1, 64, 576, 1024, 1500]),
    outputs=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    dtype=st.sampled_from(list(BOUNDS)),
    biased=st.booleans(),
    added=st.booleans(),
    seed=st.integers(0, 99),
)
@example(width=1500, outputs=[3], dtype=torch.float16, biased=True, added=True, seed=0)
@example(width=576, outputs=[9, 2, 2], dtype=torch.float32, biased=True, added=False, seed=1)
def test_maps_of_one_token_equal_products_in_float64(width, outputs, dtype, biased, added, seed):
    random = torch.Generator().manual_seed(seed)
    state = torch.randn(1, 1, width, generator=random).to(dtype)
    weights = [torch.randn(count, width, generator=random).to(dtype) for count in outputs]
    biases = [torch.randn(count, generator=random).to(dtype) if biased else None for count in outputs]
    residual = torch.randn(1, 1, outputs[0], generator=random).to(dtype) if added and len(outputs) == 1 else None
    found = one_token.linear(state, weights, biases, residual)
    assert len(found) == len(outputs)
    for result, weight, bias in zip(found, weights, biases, strict=True):
        expected = state.double() @ weight.double().T
        expected = expected if bias is None else expected + bias.double()
        expected = expected if residual is None else expected + residual.double()
        assert relative_error(result.double(), expected) <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("width", [1, 576, 1500])
def test_gates_of_one_token_equal_products_in_float64(width, dtype):
    random = torch.Generator().manual_seed(0)
    state = torch.randn(1, 1, width, generator=random).to(dtype)
    gate, up = (torch.randn(2, 7, width, generator=random) / width**0.5).to(dtype)
    gates = state.double() @ gate.double().T
    expected = gates * gates.sigmoid() * (state.double() @ up.double().T)
    assert relative_error(one_token.gated(state, gate, up).double(), expected) <= BOUNDS[dtype]


def test_unsupported_head_dimensions_and_dtypes_are_refused():
    query = torch.zeros(1, 1, 1, 320)
    with pytest.raises(ValueError, match=r"head dimensions up to 256 .* not 320 in float32: use backend sdpa"):
        get_backend("triton")(query, query, query, torch.tensor([0]), 1.0)
    query = torch.zeros(1, 1, 1, 32, dtype=torch.float64)
    with pytest.raises(ValueError, match="not 32 in float64"):
        get_backend("triton")(query, query, query, torch.tensor([0]), 1.0)
