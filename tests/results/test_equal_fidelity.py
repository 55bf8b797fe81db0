"""Speed at equal fidelity: the right time beside each method, and the fastest ratio that is good enough."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkv.experiment.profile import MethodParameters
from ragkv.results.equal_fidelity import fastest, methods_of, recorded_fidelity, speed_and_fidelity

REFERENCE = Path(__file__).parents[2] / "outputs" / "reference"

METHODS = {
    "full_prefill": ("full_prefill", {}),
    "full_reuse": ("full_reuse", {}),
    "a3": ("a3", {}),
    "a3 at layer 2": ("a3", {"layer": 2}),
    "a3 on stored keys": ("a3", {"keys": "stored", "layer": 22}),
    "probe": ("probe", {"hops": 1}),
    "probe behind a learned context": ("probe", {"hops": 1}),
    "cacheblend": ("cacheblend", {}),
    "cacheblend in 3 checks": ("cacheblend", {"checks": 3}),
    "surprisal": ("surprisal", {}),
}
BENCH = pd.DataFrame(
    [  # selector, ratio, hops, keys, layer, tier, milliseconds
        ("full_prefill", 1.0, None, None, None, "", 200.0),
        ("full_reuse", 0.0, None, None, None, "cuda", 10.0),
        ("a3", 0.05, None, None, None, "cuda", 30.0),
        ("a3", 0.05, None, "stored", 23, "cuda", 20.0),
        ("a3", 0.05, None, "stored", 8, "cuda", 15.0),
        ("a3", 0.05, None, "stored", 23, "pinned", 25.0),
        ("probe", 0.05, 1, None, None, "cuda", 24.0),
        ("probe", 0.05, 3, None, None, "cuda", 48.0),
        ("probe", 0.15, 1, None, None, "cuda", 50.0),
        ("cacheblend", 0.05, None, None, None, "cuda", 40.0),
    ],
    columns=["selector", "ratio", "hops", "keys", "layer", "tier", "p50"],
).assign(tokens=8192)
BENCH["speed-up"] = 200.0 / BENCH["p50"]


def fidelity(*rows):
    return pd.DataFrame(rows, columns=["method", "ratio", "recovered_kl"])


def test_each_method_has_the_time_of_its_selector_with_its_options():
    measured = fidelity(
        ("full_prefill", 1.0, 1.0),
        ("full_reuse", 0.0, 0.0),
        ("a3", 0.05, 0.4),
        ("a3 on stored keys", 0.05, 0.5),
        ("probe", 0.05, 0.6),
        ("probe", 0.15, 0.8),
        ("probe behind a learned context", 0.15, 0.9),
        ("cacheblend", 0.05, 0.2),
        ("cacheblend in 3 checks", 0.05, 0.2),  # all tokens are computed in more layers than in what was timed
        ("a3 at layer 2", 0.05, 0.5),  # and here
        ("surprisal", 0.05, 0.1),  # not timed
        ("full_prefill + snapkv", 1.0, 0.9),  # none of the methods that can be timed
        ("a3", 0.15, 0.45),  # not timed at this ratio
    )
    table = speed_and_fidelity(measured, METHODS, BENCH, 8192, "cuda")
    assert dict(zip(zip(table["method"], table["ratio"], strict=True), table["p50"], strict=True)) == {
        ("full_prefill", 1.0): 200.0,
        ("full_reuse", 0.0): 10.0,
        ("a3", 0.05): 30.0,
        ("a3 on stored keys", 0.05): 20.0,
        ("probe", 0.05): 24.0,
        ("probe", 0.15): 50.0,
        ("probe behind a learned context", 0.15): 50.0,  # the context changes nothing
        ("cacheblend", 0.05): 40.0,
    }
    pinned = speed_and_fidelity(measured, METHODS, BENCH, 8192, "pinned")
    assert pinned["p50"].tolist() == [200.0, 25.0]  # full prefills load nothing
    assert speed_and_fidelity(measured, METHODS, BENCH, 16384, "cuda").empty


def recorded(selector, label=None, **changed):
    """A method of a profile as a task's result keeps it."""
    method = MethodParameters.model_validate({"selector": selector, "label": label} | changed)
    return method.model_dump(mode="json")


def test_options_are_those_of_the_model_that_was_measured():
    profile = [
        recorded("probe", options={"hops": 1}),
        recorded("a3", options={"kernel": 3}, options_by_model={"tiny-qwen": {"layer": 2}, "other": {"layer": 5}}),
        recorded("a3", "a3 on fp8", offline={"format": "fp8"}),
        recorded("probe", "probe + snapkv", eviction={"name": "snapkv", "capacity_ratio": 0.25}),
        recorded("full_reuse", "full_reuse behind the prefix", offline={"context": "prefix"}),
    ]
    methods = {"probe": ("probe", {"hops": 1}), "full_reuse behind the prefix": ("full_reuse", {})}
    assert methods_of(profile, "tiny-qwen") == methods | {"a3": ("a3", {"kernel": 3, "layer": 2})}
    assert methods_of(profile, "tiny-llama") == methods | {"a3": ("a3", {"kernel": 3})}


def test_a_calibrated_method_is_refused_as_its_options_are_not_in_the_record():
    with pytest.raises(ValueError, match="does not hold the options that 'my probe' was calibrated to"):
        methods_of([recorded("full_prefill"), recorded("probe", "my probe", calibrated=True)], "tiny-llama")


def test_recorded_profiles_are_read_with_their_methods():
    table, methods = recorded_fidelity(REFERENCE / "smollm2-gpu", "smollm2", "ruler")
    assert set(table["method"]) == set(methods)
    assert methods["a3 on stored keys"] == ("a3", {"keys": "stored", "layer": 22})
    with pytest.raises(ValueError, match="has no column 'smollm2, longbench"):
        recorded_fidelity(REFERENCE / "smollm2-gpu", "smollm2", "longbench")


points = st.tuples(st.sampled_from("abc"), st.floats(0, 1), st.floats(1, 100))


@given(st.lists(points, min_size=1, max_size=12), st.lists(st.floats(0, 1), min_size=1, max_size=3, unique=True))
def test_the_fastest_ratio_that_reaches_a_level_is_taken(rows, levels):
    table = pd.DataFrame(rows, columns=["method", "recovered_kl", "speed-up"])
    table["ratio"], table["p50"] = range(len(table)), 100 / table["speed-up"]
    found = fastest(table, levels)
    expected = {}
    for level in levels:
        for method, recovered, speed in rows:
            if recovered >= level:
                expected[method, level] = max(speed, expected.get((method, level), 0))
    assert {(row["method"], row["level"]): row["speed-up"] for _, row in found.iterrows()} == expected
    for _, same in found.groupby("level"):
        assert same["speed-up"].is_monotonic_decreasing
