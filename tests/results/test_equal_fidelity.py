"""Speed at equal fidelity: the right time beside each method, and the fastest ratio that is good enough."""

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from ragkv.results.equal_fidelity import fastest, speed_and_fidelity

METHODS = [
    {"selector": "full_prefill", "label": None, "options": {}},
    {"selector": "full_reuse", "label": None, "options": {}},
    {"selector": "a3", "label": None, "options": {}},
    {"selector": "a3", "label": "a3 on stored keys", "options": {"keys": "stored", "layer": 22}},
    {"selector": "probe", "label": None, "options": {"hops": 1}},
    {"selector": "probe", "label": "probe behind a learned context", "options": {"hops": 1}},
    {"selector": "surprisal", "label": None, "options": {}},
]
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
        ("surprisal", 0.05, 0.1),  # not timed
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
    }
    pinned = speed_and_fidelity(measured, METHODS, BENCH, 8192, "pinned")
    assert pinned["p50"].tolist() == [200.0, 25.0]  # full prefills load nothing
    assert speed_and_fidelity(measured, METHODS, BENCH, 16384, "cuda").empty


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
