"""What goes into a workspace's graphs and comes out of them, on a CPU: a replayed graph runs its steps again."""

from types import SimpleNamespace

import pytest
import torch
from helpers import assert_caches_agree, make_model, random_prompt, relative_error

from ragkv import decode, fused_prefill
from ragkv.fusion.padded_layers import PaddedLayers
from ragkv.fusion.rows import Rows
from ragkv.fusion.workspace import Workspace
from ragkv.loading.layer_groups import layer_groups
from ragkv.loading.memory import InMemory
from ragkv.selectors import get_selector

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="test_workspace runs the graphs themselves")
STEP = 8  # fewer rows than on a GPU, as an interpreter runs the kernels
ONE, TWO = ["cpu"] * 3, ["cpu", "cpu:0", "cpu:0"]  # to PyTorch these are two devices


class Rerun:
    """Captures graphs that are their steps, run once more; it notes what is captured and what is replayed."""

    def __init__(self):
        self.captured, self.replayed = [], []

    def __call__(self, device, run, what):
        def replay():
            self.replayed.append(what)
            run()

        self.captured.append(what)
        run()  # once, as before a capture
        return SimpleNamespace(replay=replay)


@pytest.fixture
def workspace_of(monkeypatch):
    """Makes a workspace with such graphs, whose layers lie on these devices."""
    for module in ("workspace_memory.has_kernel", "placement.kernels_run"):
        monkeypatch.setattr(f"ragkv.fusion.{module}", lambda _: True)  # Triton's interpreter has them
    monkeypatch.setattr("ragkv.loading.layer_groups.GROUP_SIZE", 2)
    monkeypatch.setattr("ragkv.fusion.graphs.STEP", STEP)

    def make(model, tokens, devices, **options):
        workspace = Workspace(model, tokens, capture=Rerun(), **options)
        workspace.memory.devices = [torch.device(name) for name in devices]
        return workspace

    return make


@pytest.mark.parametrize("devices", [ONE, TWO], ids=["one device", "two devices"])
@pytest.mark.parametrize(("family", "name"), [("smollm3", "full_reuse"), ("qwen2", "probe"), ("phi3", "a3")])
@pytest.mark.parametrize("at_once", [True, False], ids=["placed at once", "layer by layer"])
def test_graphs_give_what_the_layers_give(rng, workspace_of, monkeypatch, devices, family, name, at_once):
    """Prompt after prompt, each of other lengths; padding leaves nothing behind."""
    monkeypatch.setattr("ragkv.fusion.placement.kernels_run", lambda _: at_once)
    model = make_model(family)
    model.generation_config.eos_token_id = None
    workspace = workspace_of(model, 70, devices)
    selector = get_selector(name) if name == "full_reuse" else get_selector(name, ratio=0.2)
    for chunks in ((13, 31), (5, 9, 8)):
        prompt = random_prompt(rng, chunks=chunks)
        store = InMemory.computed(model, prompt)
        expected = fused_prefill(model, prompt, store, selector)
        found = fused_prefill(model, prompt, store, selector, workspace=workspace)
        assert torch.equal(found.selected, expected.selected)
        assert relative_error(found.logits, expected.logits) <= 1e-4
        assert_caches_agree(found.cache, expected.cache, 1e-4)
        assert decode(model, found, max_new_tokens=3).ids == decode(model, expected, max_new_tokens=3).ids
    graphs = workspace._capture
    assert any("tokens" in what for what in graphs.captured)
    assert set(graphs.captured) == set(graphs.replayed)


@pytest.mark.parametrize("devices", [ONE, TWO], ids=["one device", "two devices"])
def test_a_graph_is_captured_once_for_its_number_of_rows(workspace_of, devices):
    """The call that captures it also computes."""
    model = make_model("llama")
    workspace = workspace_of(model, 30, devices, rows=2 * STEP)
    graphs, captured = workspace.graphs, workspace._capture.captured
    hidden = torch.randn(1, 2 * STEP, 64)
    for count, kinds in ((1, 1), (STEP, 1), (STEP + 1, 2), (7, 2), (2 * STEP, 2)):
        active = torch.arange(30)[-count:]
        assert graphs.cover(count)
        rows = Rows.of([active], [range(30)])
        first, again = (graphs.replay(range(3), hidden[:, :count], rows).clone() for _ in range(2))
        assert torch.equal(first, again)
        assert len(captured) == kinds * len(layer_groups(range(3), workspace.memory.devices))
    assert not graphs.cover(2 * STEP + 1)  # more than `rows`


@pytest.mark.parametrize("devices", [ONE, TWO], ids=["one device", "two devices"])
@pytest.mark.parametrize("count", [1, STEP - 1, STEP, STEP + 1])
def test_padding_changes_nothing(workspace_of, devices, count):
    """With and without padding: the same states, keys, values and attention weights."""
    model, hidden, active = make_model("llama"), torch.randn(1, count, 64), torch.arange(count) * 2
    plain, graphed = (workspace_of(model, 20, devices) for _ in range(2))
    rows = Rows.of([active], [range(20)])
    layers = PaddedLayers(plain.memory)
    for power in (2.0, None, 1.0):
        expected = hidden
        for span in plain.memory.spans(range(3)):
            expected = layers.run(span, expected, active, active, power=power)
        assert relative_error(graphed.graphs.replay(range(3), hidden, rows, power), expected) <= 1e-5
        assert relative_error(graphed.graphs.weights, layers.weights) <= 1e-5
    for one, other in zip(graphed.memory.cache(20), plain.memory.cache(20), strict=True):
        assert all(map(torch.equal, [a != 0 for a in one], [b != 0 for b in other]))
        assert all(relative_error(a, b) <= 1e-5 for a, b in zip(one, other, strict=True))
