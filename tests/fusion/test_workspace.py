"""A workspace gives what a prefill without one gives, prompt after prompt."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from helpers import RATIO_SELECTORS, assert_caches_agree, make_model, memory_store, random_prompt, relative_error

from ragkv import decode, fused_prefill, precompute
from ragkv.eviction import get_eviction
from ragkv.fusion.clock import Clock
from ragkv.fusion.memory import OwnMemory
from ragkv.fusion.placement import Placement
from ragkv.fusion.workspace import Workspace
from ragkv.fusion.workspace_memory import WorkspaceMemory
from ragkv.loading.reused import ReusedKV
from ragkv.loading.segments import SegmentInMemory
from ragkv.selectors import get_selector

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


def ready(model, rng, **lengths):
    prompt, store = random_prompt(rng, **lengths), memory_store()
    precompute(model, [prompt], store)
    return prompt, store


def selectors():
    with_ratio = [get_selector(name, ratio=0.3) for name in RATIO_SELECTORS]
    return [*with_ratio, *(get_selector(name) for name in ("full_prefill", "full_reuse", "cat"))]


@pytest.mark.parametrize("device", DEVICES)
def test_prefill_and_decoding_are_as_without(family, rng, device):
    """Also in a workspace that still holds the keys and values of other, longer prompts."""
    model = make_model(family).to(device)
    model.generation_config.eos_token_id = None
    workspace = Workspace(model, 150)
    for lengths in ({"chunks": (40, 31, 50)}, {}, {"chunks": (2, 9), "question": 3, "prefix": None}):
        prompt, store = ready(model, rng, **lengths)
        for selector in selectors():
            expected = fused_prefill(model, prompt, store, selector)
            found = fused_prefill(model, prompt, store, selector, workspace=workspace)
            assert torch.equal(found.selected, expected.selected)
            assert relative_error(found.logits, expected.logits) <= 1e-4
            assert found.cache.get_seq_length() == len(prompt.ids)
            assert_caches_agree(found.cache, expected.cache, 1e-4)
            assert decode(model, found, max_new_tokens=5).ids == decode(model, expected, max_new_tokens=5).ids


def test_a_model_that_changed_needs_a_new_workspace(rng):
    model = make_model("llama")
    workspace = Workspace(model, 150)
    prompt, store = ready(model, rng)
    fused_prefill(model, prompt, store, get_selector("a3"), workspace=workspace)
    model.model.layers[0].self_attn.k_proj.weight.data.mul_(2)
    with pytest.raises(ValueError, match="the model has changed since the workspace was made: make a new one"):
        fused_prefill(model, prompt, store, get_selector("a3"), workspace=workspace)


@pytest.mark.parametrize("name", ["a3", "cacheblend", "surprisal"])
def test_the_last_layer_may_choose(llama, rng, name):
    """Its choice comes after that layer has placed its keys and values, so no layer reuses the document."""
    prompt, store = ready(llama, rng)
    selector = get_selector(name, ratio=0.3, layer=llama.config.num_hidden_layers - 1)
    expected = fused_prefill(llama, prompt, store, selector)
    found = fused_prefill(llama, prompt, store, selector, workspace=Workspace(llama, 100))
    assert torch.equal(found.selected, expected.selected)
    assert relative_error(found.logits, expected.logits) <= 1e-4


def test_the_prefill_stays_usable(llama, rng):
    prompt, store = ready(llama, rng)
    prefill = fused_prefill(llama, prompt, store, get_selector("a3"), workspace=Workspace(llama, 100))
    assert decode(llama, prefill, max_new_tokens=6).ids == decode(llama, prefill, max_new_tokens=6).ids


@pytest.mark.parametrize("name", ["streaming", "snapkv"])
def test_decoding_behind_an_eviction_goes_on_in_the_workspace(family, rng, monkeypatch, name):
    """What stays lies in its first slots; what follows is what follows in memory of its own, again and again."""
    model = make_model(family)
    model.generation_config.eos_token_id = None
    prompt, store = ready(model, rng)
    eviction, selector = get_eviction(name, capacity_ratio=0.6), get_selector("epic", ratio=0.2)
    workspace = Workspace(model, 100)
    expected = fused_prefill(model, prompt, store, selector, eviction=eviction)
    plainly = decode(model, expected, max_new_tokens=6)
    steps = []
    monkeypatch.setattr(
        workspace, "_advance", lambda state: steps.append(state) or Workspace._advance(workspace, state)
    )
    for _ in range(2):
        found = fused_prefill(model, prompt, store, selector, eviction=eviction, workspace=workspace)
        kept = found.cache.get_seq_length()
        assert kept == expected.cache.get_seq_length() < len(prompt.ids)
        for _ in range(2):
            steps.clear()
            generation = decode(model, found, max_new_tokens=6)
            assert len(steps) == 5
            assert generation.ids == plainly.ids
            assert generation.cache.get_seq_length() == kept + 5
            assert_caches_agree(generation.cache, plainly.cache, 1e-4)


def test_a_prompt_too_long_and_another_model_are_refused(llama, rng):
    prompt, store = ready(llama, rng)
    tokens = len(prompt.ids)
    with pytest.raises(ValueError, match=f"room for 20 tokens, the prompt has {tokens}: make a larger one"):
        fused_prefill(llama, prompt, store, get_selector("a3"), workspace=Workspace(llama, 20))
    with pytest.raises(ValueError, match="the workspace was made for another model"):
        fused_prefill(llama, prompt, store, get_selector("a3"), workspace=Workspace(make_model("llama"), 100))


def test_processes_serve_one_transfer_at_a_time(llama, monkeypatch):
    """The first span of layers on each GPU gets that GPU's workers, unless only the prefix is reused."""
    memory, given = WorkspaceMemory(llama, 64), []
    layers, gpus = len(memory.devices), (torch.device("cuda", 0), torch.device("cuda", 1))
    memory.devices = [gpus[i % 2] for i in range(layers)]
    memory.workers = {gpus[0]: "of the first", gpus[1]: "of the second"}

    def transfer(segments, groups, to, workers):
        given.append(workers)
        return SimpleNamespace(staged=[], start=lambda place: None)

    monkeypatch.setattr("ragkv.fusion.placement.Transfer", transfer)
    monkeypatch.setattr("ragkv.fusion.placement.kernels_run", lambda device: False)
    monkeypatch.setattr(memory.rotary[0], "on", lambda device: None)
    segment = SegmentInMemory(torch.zeros(layers, 2, 2, 3, 16), torch.zeros(3))
    placement = Placement([ReusedKV([segment], [segment])], [range(6)], memory, Clock())
    for prefix_only in (False, True, False):
        placement.start(range(layers), prefix_only=prefix_only)
    one_each = ["of the first", "of the second", *[None] * (layers - 2)]
    assert given == one_each + [None] * layers + one_each


def test_memory_of_its_own_is_allocated_layer_by_layer(llama, rng, monkeypatch):
    """Each layer when it is reached. An eviction frees it again, so that there is never more than one."""
    prompt, store = ready(llama, rng)
    allocated, most = set(), []
    allocate, replace = OwnMemory._allocate, OwnMemory.replace

    def note(memory, index):
        allocated.add(index)
        most.append(len(allocated))
        return allocate(memory, index)

    def forget(memory, index, *remaining):
        allocated.remove(index)
        return replace(memory, index, *remaining)

    monkeypatch.setattr(OwnMemory, "_allocate", note)
    monkeypatch.setattr(OwnMemory, "replace", forget)
    evicted = fused_prefill(llama, prompt, store, get_selector("a3"), eviction=get_eviction("streaming", capacity=30))
    assert [layer.keys.shape[2] for layer in evicted.cache.layers] == [30] * llama.config.num_hidden_layers
    assert set(most) == {1}
    most.clear()
    fused_prefill(llama, prompt, store, get_selector("a3"))
    assert most == sorted(most)
    assert most[-1] == llama.config.num_hidden_layers


def test_a_workspace_is_freed_when_it_is_dropped(llama, rng, monkeypatch):
    """Without waiting for Python's garbage collection, which knows nothing of a full GPU."""
    prompt, store = ready(llama, rng)
    workspace = Workspace(llama, 100)
    fused_prefill(llama, prompt, store, get_selector("a3"), workspace=workspace)
    memory = weakref.ref(workspace.memory.layer(0)[0])
    gc.disable()
    try:
        del workspace
        assert memory() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("left", [0, 1, 4, 5, 6])
def test_decoding_may_need_more_than_the_workspace(llama, rng, left, monkeypatch):
    """Six tokens take five more positions: the keys and values of the last one are never needed."""
    monkeypatch.setattr(llama.generation_config, "eos_token_id", None)
    prompt, store = ready(llama, rng)
    selector, steps = get_selector("a3"), []
    workspace = Workspace(llama, len(prompt.ids) + left)
    found = fused_prefill(llama, prompt, store, selector, workspace=workspace)
    expected = decode(llama, fused_prefill(llama, prompt, store, selector), max_new_tokens=6)
    monkeypatch.setattr(
        workspace, "_advance", lambda state: steps.append(state) or Workspace._advance(workspace, state)
    )
    generation = decode(llama, found, max_new_tokens=6)
    assert generation.ids == expected.ids
    assert len(generation.ids) == 6
    assert len(steps) == (5 if left >= 5 else 0)
    assert_caches_agree(generation.cache, expected.cache, 1e-4)


@GPU
@pytest.mark.parametrize("where", ["cuda", "pinned", "cpu"])
@pytest.mark.parametrize("rows", [10, 2048])
def test_graphs_give_the_same_wherever_segments_lie(rng, where, rows):
    from ragkv.loading.memory import InMemory

    model = make_model("qwen2").cuda()
    prompt = random_prompt(rng, chunks=(60, 190, 80))
    plain = InMemory.computed(model, prompt)
    store = plain.to(where)
    workspace = Workspace(model, 384, rows=rows)  # 340 tokens, rounded up: as many rows as slots
    for name in ("full_prefill", "full_reuse", "probe", "a3", "cacheblend", "epic"):
        selector = get_selector(name) if name.startswith("full") else get_selector(name, ratio=0.2)
        expected = fused_prefill(model, prompt, plain, selector)
        runs = [fused_prefill(model, prompt, store, selector, workspace=workspace) for _ in range(2)]
        assert torch.equal(runs[0].selected, expected.selected)
        assert torch.equal(runs[0].logits, runs[1].logits)
        assert relative_error(runs[0].logits, expected.logits) <= 1e-4


def test_a_cpu_needs_no_workspace(llama):
    assert Workspace.if_faster(llama, 100) is None


@pytest.mark.parametrize(("backend", "faster"), [("auto", True), ("triton", True), ("sdpa", False)])
def test_a_workspace_is_made_where_its_graphs_hold_the_backend(llama, monkeypatch, backend, faster):
    monkeypatch.setattr("ragkv.fusion.workspace.kernels_run", lambda device: True)
    found = Workspace.if_faster(llama, 100, backend)
    assert (found.memory.tokens if faster else found) == (100 if faster else None)
