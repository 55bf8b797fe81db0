"""However stored keys and values come into the memory of the layers, the prefill is the same."""

from collections import Counter, defaultdict
from functools import cached_property, partial

import pytest
import torch
from helpers import Immediately, assert_caches_agree, make_model, memory_store, random_prompt, relative_error

from ragkv import fused_prefill, precompute
from ragkv.eviction import get_eviction
from ragkv.fusion.workspace import Workspace
from ragkv.loading.memory import InMemory
from ragkv.loading.transfer import Transfer
from ragkv.selectors import get_selector

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has streams and kernels")


@pytest.fixture(params=["kernel", "plain"])
def transfers(request, monkeypatch):
    """Lets a CPU have layers copied beside what it computes, and counts how often that is begun."""
    begun = []

    def transfer(*given):
        begun.append(given)
        return Transfer(*given, stream=Immediately())

    monkeypatch.setattr("ragkv.fusion.placement._copies_overlap", lambda device: True)
    monkeypatch.setattr("ragkv.fusion.placement.kernels_run", lambda device: request.param == "kernel")
    monkeypatch.setattr("ragkv.fusion.placement.Transfer", transfer)
    monkeypatch.setattr("ragkv.loading.layer_groups.GROUP_SIZE", 2)
    return begun


@pytest.mark.parametrize("prefix", [4, None])
@pytest.mark.parametrize("name", ["full_reuse", "cat", "probe", "a3", "cacheblend"])
@pytest.mark.parametrize("lent", [False, True], ids=["own memory", "in a workspace"])
def test_layers_that_are_transferred_are_as_those_read_one_by_one(rng, monkeypatch, transfers, lent, name, prefix):
    model, store = make_model("qwen2", num_hidden_layers=7), memory_store()
    prompt = random_prompt(rng, chunks=(13, 3, 40), prefix=prefix)
    precompute(model, [prompt], store)
    selector = get_selector(name) if name in ("full_reuse", "cat") else get_selector(name, ratio=0.2)
    workspace = Workspace(model, 100) if lent else None
    with monkeypatch.context() as patch:
        patch.setattr("ragkv.fusion.placement._copies_overlap", lambda device: False)
        expected = fused_prefill(model, prompt, store, selector)
    assert not transfers
    found = fused_prefill(model, prompt, store, selector, workspace=workspace)
    assert len(transfers) == (2 if name in ("a3", "cacheblend") and prefix else 1)  # one for the prefix alone
    assert torch.equal(found.selected, expected.selected)
    assert relative_error(found.logits, expected.logits) <= 1e-5
    assert_caches_agree(found.cache, expected.cache, 1e-5)


class Counting(InMemory):
    """Segments that are read into host memory first, as those of files are; counts the bytes read of each layer."""

    def open(self, layout, segment):
        return CountingSegment(super().open(layout, segment), self.bytes_read[segment], self.read_apart)

    @cached_property
    def bytes_read(self):
        return defaultdict(Counter)  # by segment and layer

    @cached_property
    def read_apart(self):
        return []  # layers that were not read with their group


class CountingSegment:
    """One of them."""

    def __init__(self, states, bytes_read, read_apart):
        self._states = states
        self._bytes_read = bytes_read
        self._read_apart = read_apart

    def __getattr__(self, name):
        return getattr(self._states, name)

    def layer(self, index):
        self._bytes_read[index] += self.layer_bytes
        self._read_apart.append(index)
        return self._states.layer(index)

    def read_layers(self, first, buffers):
        self._bytes_read.update({first + i: len(buffer) for i, buffer in enumerate(buffers)})
        self._states.read_layers(first, buffers)

    def delegate(self, index, buffer):
        self.read_layers(index, [buffer])


@pytest.mark.parametrize("overlapping", [False, True], ids=["read when needed", "transferred"])
@pytest.mark.parametrize(
    ("name", "options", "first"),  # the first layer that reuses chunks, or compares them with what is computed afresh
    [
        ("full_reuse", {}, 0),
        ("probe", {}, 0),
        ("a3", {"keys": "stored", "layer": 3}, 0),
        ("a3", {"layer": 2}, 3),
        ("a3_blend", {"layer": 2}, 2),
        ("cacheblend", {}, 1),
        ("cacheblend", {"gap": "k", "checks": 3}, 1),
    ],
)
def test_no_layer_is_read_twice_nor_without_need(rng, monkeypatch, transfers, name, options, first, overlapping):
    monkeypatch.setattr("ragkv.fusion.placement._copies_overlap", lambda device: overlapping)
    model, prompt = make_model("llama", num_hidden_layers=7), random_prompt(rng, chunks=(13, 3, 40))
    store = Counting.computed(model, prompt)
    fused_prefill(model, prompt, store, get_selector(name, **options), workspace=Workspace(model, 100))
    prefix, *chunks = store.segments.items()
    for (segment, states), layers in [(prefix, range(7)), *((chunk, range(first, 7)) for chunk in chunks)]:
        assert store.bytes_read[segment] == dict.fromkeys(layers, states.layer_bytes)
    assert not (overlapping and store.read_apart)


@pytest.mark.parametrize("lent", [False, True], ids=["own memory", "in a workspace"])
def test_what_is_transferred_can_be_evicted(llama, rng, transfers, lent):
    prompt = random_prompt(rng)
    prefill = partial(fused_prefill, llama, prompt, InMemory.computed(llama, prompt), get_selector("epic", ratio=0.2))
    whole = prefill()
    found = prefill(eviction=get_eviction("streaming", capacity=30), workspace=Workspace(llama, 60) if lent else None)
    if not lent:
        assert transfers
    kept = [*range(4), *range(24, 50)]  # the prefix, and the last tokens
    for small, full in zip(found.cache.layers, whole.cache.layers, strict=True):
        assert relative_error(small.keys, full.keys[:, :, kept]) <= 1e-5
        assert relative_error(small.values, full.values[:, :, kept]) <= 1e-5
