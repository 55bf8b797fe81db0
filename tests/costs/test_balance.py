"""Loading is weighed against computing: what a prefill really loads and computes, and the ratio at which it turns."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from helpers import make_model, random_prompt
from hypothesis import given
from hypothesis import strategies as st

from ragkv import fused_prefill
from ragkv.costs.prefill import bytes_loaded, operations
from ragkv.costs.roofline import Machine
from ragkv.costs.shape import Shape
from ragkv.loading.memory import InMemory
from ragkv.loading.segments import SegmentInMemory
from ragkv.selectors import get_selector

LLAMA = Shape.of("meta-llama/Meta-Llama-3-8B-Instruct")
SELECTORS = ("probe", "a3", "cacheblend", "epic", "tail")
speeds = st.floats(-2, 4).map(lambda power: 10**power)


def machine(tflops=500.0, times=(1.0, 1.0, 1.0)):
    return Machine("made up", tflops, 3000.0, times=times)


@dataclass(frozen=True)
class Counted(SegmentInMemory):
    """Notes the bytes that are taken from it."""

    taken: list[int] = field(default_factory=list)

    def layer(self, index):
        self.taken.append(super().layer(index).nbytes)
        return super().layer(index)


@pytest.mark.parametrize(
    ("name", "options"),
    [("full_prefill", {}), ("full_reuse", {}), ("probe", {}), ("surprisal", {"layer": 1})]
    + [(name, {"layer": layer}) for name in ("a3", "a3_blend", "cacheblend") for layer in range(4)],
)  # fmt: skip
def test_bytes_loaded_are_those_that_a_prefill_takes_from_the_store(rng, name, options):
    """Layers up to the choice are computed for all tokens, and not loaded."""
    model, prompt = make_model("llama", num_hidden_layers=4), random_prompt(rng, chunks=(30, 41), prefix=None)
    segments = InMemory.computed(model, prompt).segments
    counted = {segment: Counted(states.layers, states.scores) for segment, states in segments.items()}
    selector = get_selector(name, **options)
    fused_prefill(model, prompt, InMemory(counted), selector)
    loaded = sum(sum(states.taken) for states in counted.values())
    assert bytes_loaded(Shape.of_config(model.config), selector, 30 + 41, stored=4) == pytest.approx(loaded)


@given(st.sampled_from(SELECTORS), st.integers(1, 2**17), st.floats(0, 1), speeds, speeds, st.floats(1, 10))
def test_both_times_are_those_of_the_formulas_and_the_longer_is_the_bound(name, tokens, ratio, tflops, gbs, factor):
    selector = get_selector(name, ratio=ratio)
    balance = machine(tflops, times=(factor, 1.0, 1.0)).balance(LLAMA, selector, tokens, gbs)
    assert balance.loading == pytest.approx(bytes_loaded(LLAMA, selector, tokens) / (gbs * 1e9))
    assert balance.computing == pytest.approx(factor * operations(LLAMA, selector, tokens) / (tflops * 1e12))
    times = {"loading": balance.loading, "computing": balance.computing}
    assert times[balance.bound] == max(times.values())


@given(st.sampled_from(SELECTORS), st.integers(100, 2**17), speeds, speeds)
def test_it_turns_at_the_ratio_where_both_take_equally_long(name, tokens, tflops, gbs):
    """Compared with a walk over all ratios in small steps."""
    selector, steps = get_selector(name), np.linspace(0, 1, 1001)
    balance = machine(tflops).balance(LLAMA, selector, tokens, gbs)
    times = [operations(LLAMA, replace(selector, ratio=float(ratio)), tokens) / (tflops * 1e12) for ratio in steps]
    shorter = [ratio for ratio, computing in zip(steps, times, strict=True) if computing < balance.loading]
    assert balance.turning == pytest.approx(max(shorter, default=0.0), abs=steps[1] + 1e-9)
    if times[0] < balance.loading < times[-1]:
        turned = machine(tflops).balance(LLAMA, replace(selector, ratio=balance.turning), tokens, gbs)
        assert turned.computing == pytest.approx(turned.loading)


@pytest.mark.parametrize("name", ["full_reuse", "cat"])
@pytest.mark.parametrize(("gbs", "bound", "turning"), [(1e-3, "loading", 1), (1e6, "computing", 0)])
def test_a_selector_of_one_ratio_turns_at_an_end(name, gbs, bound, turning):
    balance = machine().balance(LLAMA, get_selector(name), 8192, gbs)
    assert (balance.bound, balance.turning) == (bound, turning)


def test_a_full_prefill_loads_nothing():
    balance = machine().balance(LLAMA, get_selector("full_prefill"), 8192, gbs=1e-3)
    assert (balance.loading, balance.bound, balance.turning) == (0, "computing", 0)


@pytest.mark.parametrize(("size", "factor"), [(1, 0.5), (0.5, 0.25), (4, 2)])
def test_smaller_numbers_load_faster(size, factor):
    plain, other = (machine().balance(LLAMA, get_selector("a3"), 8192, 20, stored) for stored in (2, size))
    assert other.loading == pytest.approx(factor * plain.loading)
    if factor < 1:
        assert other.turning < plain.turning
    else:
        assert other.turning > plain.turning
