"""Precompute on a GPU, where short segments share passes."""

import pytest
import torch
from helpers import make_model, memory_store, random_ids, relative_error

from ragkv import Prompt, precompute
from ragkv.contexts import LearnedContext
from ragkv.models.fingerprint import fingerprint
from ragkv.models.pass_shape import PassShape
from ragkv.models.segment_pass import compute_segment, compute_segments
from ragkv.prompt import Segment
from ragkv.store.precompute import MOST_TOKENS, most_tokens

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)  # here, so that hundreds of tests are not collected first

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}


def segments_of(rng, lengths, learned=None):
    return [Segment(tuple(random_ids(rng, length)), (1,), learned) for length in lengths]


def learned_context(model):
    config = model.config
    shape = (config.num_hidden_layers, 2, config.num_key_value_heads, 3, config.head_dim)
    return LearnedContext(torch.randn(shape, generator=torch.Generator().manual_seed(0)), fingerprint(model))


@pytest.mark.parametrize("behind", ["bos", "learned"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_shared_pass_gives_what_each_segment_gives_alone(family, rng, dtype, behind):
    model = make_model(family).to("cuda", dtype)
    segments = segments_of(rng, (64, 60, 49, 64, 57), learned_context(model) if behind == "learned" else None)
    shape = PassShape.shared(segments[0], 8 * 65)
    assert (shape.rows, shape.tokens) == (8, 64)
    for segment, (layers, surprisal) in zip(segments, compute_segments(model, segments, shape), strict=True):
        expected_layers, expected_surprisal = compute_segment(model, segment)
        assert layers.is_pinned()
        assert relative_error(layers, expected_layers) <= TOLERANCE[dtype]
        assert relative_error(surprisal, expected_surprisal) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_segment_is_the_same_bit_by_bit_whatever_shares_its_pass(family, rng, dtype):
    model = make_model(family, max_position_embeddings=2048).to("cuda", dtype)
    segments = segments_of(rng, [120] * 28)
    shape = PassShape.shared(segments[0], MOST_TOKENS)
    assert shape.rows == 28
    together = compute_segments(model, segments, shape)
    for number in (0, 11, 27):
        (layers, surprisal), *_ = compute_segments(model, [segments[number], *segments[:3]], shape)
        assert torch.equal(layers, together[number][0])
        assert torch.equal(surprisal, together[number][1])


def test_precompute_stores_the_same_bits_one_by_one_and_at_once(family, rng):
    window = {"sliding_window": 2048} if family == "gemma3_text" else {}
    model = make_model(family, max_position_embeddings=2048, **window).to("cuda", torch.bfloat16)
    chunks = [random_ids(rng, 20 + i % 13) for i in range(40)]
    assert most_tokens(model) == MOST_TOKENS
    at_once, one_by_one = memory_store(), memory_store()
    assert precompute(model, [Prompt([1], chunks, [9])], at_once).written == 41
    for chunk in reversed(chunks):
        precompute(model, [Prompt([1], [chunk], [9])], one_by_one)
    keys = at_once.keys()
    assert one_by_one.keys() == keys
    assert all(one_by_one.segments.read(key) == at_once.segments.read(key) for key in keys)
