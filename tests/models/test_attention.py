"""Position-causal attention against a plain loop in float64."""

import math

import pytest
import torch
from helpers import relative_error
from hypothesis import example, given
from hypothesis import strategies as st

from ragkv.models import attention, flashinfer
from ragkv.models.attention import BACKENDS, auto, get_backend


def slow(query, key, value, positions, scaling):
    """One query of one head at a time, one key at a time."""
    _, heads, count, _ = query.shape
    group = heads // key.shape[1]
    result = torch.zeros(query.shape, dtype=torch.float64)
    for head in range(heads):
        for row in range(count):
            seen = int(positions[row]) + 1
            keys, values = key[0, head // group, :seen].double(), value[0, head // group, :seen].double()
            products = [scaling * float(query[0, head, row].double() @ k) for k in keys]
            most = max(products)
            weights = [math.exp(product - most) for product in products]
            result[0, head, row] = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    return result


@st.composite
def cases(draw):
    tokens = draw(st.integers(1, 23))
    positions = sorted(draw(st.sets(st.integers(0, tokens - 1), min_size=1)))
    kv_heads, group, dim = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.sampled_from([1, 3, 8, 17]))
    return tokens, positions, kv_heads, group, dim, draw(st.integers(0, 99))


@pytest.mark.parametrize("backend", ["sdpa", "auto"])
@pytest.mark.parametrize("tile", [256, 3])
@given(case=cases())
@example(case=(9, list(range(9)), 2, 2, 8, 0))
@example(case=(9, [8], 2, 2, 8, 0))
def test_backends_equal_a_plain_softmax(backend, tile, case):
    tokens, positions, kv_heads, group, dim, seed = case
    random = torch.Generator().manual_seed(seed)
    query = torch.randn(1, kv_heads * group, len(positions), dim, generator=random)
    key, value = torch.randn(2, 1, kv_heads, tokens, dim, generator=random)
    positions = torch.tensor(positions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "TILE", tile)
        found = BACKENDS[backend](query, key, value, positions, 0.37)
    assert relative_error(found, slow(query, key, value, positions, 0.37)) <= 1e-5


def test_many_tiles_equal_one(monkeypatch):
    random = torch.Generator().manual_seed(3)
    query, key, value = torch.randn(3, 1, 2, 600, 8, generator=random)
    positions = torch.arange(0, 600, 2)
    tiled = attention.sdpa(query[:, :, ::2], key, value, positions, 0.3)
    monkeypatch.setattr(attention, "TILE", 10_000)
    assert relative_error(tiled, attention.sdpa(query[:, :, ::2], key, value, positions, 0.3)) <= 1e-5


def test_an_unknown_backend_names_those_that_exist():
    with pytest.raises(ValueError, match=r"'tpu'.*sdpa"):
        get_backend("tpu")


@pytest.mark.parametrize("name", BACKENDS)
def test_a_known_backend_is_found(name):
    assert get_backend(name) is (auto if name.startswith("flashinfer") and flashinfer.missing() else BACKENDS[name])


@pytest.mark.parametrize("name", ["flashinfer", "flashinfer_tiles"])
def test_without_flashinfer_auto_is_used_and_the_reason_logged(name, monkeypatch, caplog):
    monkeypatch.setattr(flashinfer, "missing", lambda: "ImportError: no such library")
    assert get_backend(name) is auto
    assert caplog.messages == [f"backend auto instead of {name}, which cannot run here: ImportError: no such library"]


@pytest.mark.parametrize("attend", [flashinfer.packed, flashinfer.tiles])
def test_heads_that_flashinfer_lacks_are_refused(attend):
    for head_dim, dtype in ((80, torch.bfloat16), (128, torch.float32)):
        query = torch.zeros(1, 1, 1, head_dim, dtype=dtype)
        with pytest.raises(ValueError, match=f"not {head_dim} in {str(dtype)[6:]}: use backend triton or sdpa"):
            attend(query, query, query, torch.tensor([0]), 1.0)
