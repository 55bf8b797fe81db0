"""What is weighed against each other is what a prefill loads and computes, and it turns where both take as long."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from helpers import make_model, random_prompt
from hypothesis import given
from hypothesis import strategies as st

from ragkv import fused_prefill
from ragkv.costs.balance import balance
from ragkv.costs.prefill import fused
from ragkv.costs.shape import Shape
from ragkv.loading.memory import InMemory
from ragkv.loading.segments import SegmentInMemory
from ragkv.selectors import get_selector

LLAMA = Shape.of("meta-llama/Meta-Llama-3-8B-Instruct")
SELECTORS = ("probe", "a3", "cacheblend", "epic", "tail")
speeds = st.floats(-2, 4).map(lambda power: 10**power)


@dataclass(frozen=True)
class Counted(SegmentInMemory):
    """Adds up the bytes that are taken from it."""

    taken: list[int] = field(default_factory=list)

    def layer(self, index):
        self.taken.append(super().layer(index).nbytes)
        return super().layer(index)


@pytest.mark.parametrize(
    ("name", "options"),
    [("full_prefill", {}), ("full_reuse", {}), ("probe", {}), ("surprisal", {"layer": 1})]
    + [(name, {"layer": layer}) for name in ("a3", "a3_blend", "cacheblend") for layer in range(4)],
)  # fmt: skip
def test_loading_takes_the_bytes_that_a_prefill_loads(rng, name, options):
    """Layers up to the choice are computed for all tokens, and not loaded."""
    model, prompt = make_model("llama", num_hidden_layers=4), random_prompt(rng, chunks=(30, 41), prefix=None)
    segments = InMemory.computed(model, prompt).segments
    counted = {segment: Counted(states.layers, states.scores) for segment, states in segments.items()}
    selector = get_selector(name, **options)
    fused_prefill(model, prompt, InMemory(counted), selector)
    loaded = sum(sum(states.taken) for states in counted.values())
    found = balance(Shape.of_config(model.config), selector, 30 + 41, tflops=1, gbs=3, number_size=4)
    assert found.loading == pytest.approx(loaded / 3e9)


@given(st.sampled_from(SELECTORS), st.integers(1, 2**17), st.floats(0, 1), speeds, speeds)
def test_computing_takes_the_operations_of_a_prefill_and_the_slower_part_is_the_bound(name, tokens, ratio, tflops, gbs):
    selector = get_selector(name, ratio=ratio)
    found = balance(LLAMA, selector, tokens, tflops=tflops, gbs=gbs)
    assert found.computing == pytest.approx(fused(LLAMA, selector, tokens) / (tflops * 1e12))
    assert {"loading": found.loading, "computing": found.computing}[found.bound] == max(found.loading, found.computing)


@given(st.sampled_from(SELECTORS), st.integers(100, 2**17), speeds, speeds)
def test_it_turns_at_the_ratio_where_both_take_as_long(name, tokens, tflops, gbs):
    """Against a walk over all ratios in small steps."""
    selector, steps = get_selector(name), np.linspace(0, 1, 1001)
    found = balance(LLAMA, selector, tokens, tflops=tflops, gbs=gbs)
    times = [fused(LLAMA, replace(selector, ratio=float(ratio)), tokens) / (tflops * 1e12) for ratio in steps]
    longer = [ratio for ratio, computing in zip(steps, times, strict=True) if computing < found.loading]
    assert found.turning == pytest.approx(max(longer, default=0.0), abs=steps[1] + 1e-9)
    if times[0] < found.loading < times[-1]:
        there = balance(LLAMA, replace(selector, ratio=found.turning), tokens, tflops=tflops, gbs=gbs)
        assert there.computing == pytest.approx(there.loading)


@pytest.mark.parametrize("name", ["full_reuse", "cat"])
@pytest.mark.parametrize(("gbs", "bound", "turning"), [(1e-3, "loading", 1), (1e6, "computing", 0)])
def test_a_selector_of_one_ratio_turns_at_an_end(name, gbs, bound, turning):
    found = balance(LLAMA, get_selector(name), 8192, tflops=500, gbs=gbs)
    assert (found.bound, found.turning) == (bound, turning)


def test_a_full_prefill_loads_nothing():
    found = balance(LLAMA, get_selector("full_prefill"), 8192, tflops=500, gbs=1e-3)
    assert (found.loading, found.bound, found.turning) == (0, "computing", 0)


@pytest.mark.parametrize(("size", "factor"), [(1, 0.5), (0.5, 0.25), (4, 2)])
def test_smaller_numbers_load_faster(size, factor):
    plain, other = (
        balance(LLAMA, get_selector("a3"), 8192, tflops=500, gbs=20, number_size=number) for number in (2, size)
    )
    assert other.loading == pytest.approx(factor * plain.loading)
    assert (other.turning < plain.turning) == (factor < 1)
