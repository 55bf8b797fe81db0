"""Methods are ranked prompt by prompt, ties are named, and few prompts rank nothing."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkv.results.ranking import FEWEST, leaders, measure_of, partial_methods

SHARES = {"full_prefill": 1.0, "full_reuse": 0.0, "a3": 0.15, "epic": 0.1}


def rows_of(**values) -> pd.DataFrame:
    """A row per prompt for each method, with its values in ``kl``."""
    return pd.DataFrame(
        {"prompt": f"p{number}", "method": method, "ratio": SHARES[method], "share": SHARES[method], "kl": value}
        for method, column in values.items()
        for number, value in enumerate(column)
    )


def keys(*methods: str) -> list[tuple[str, float]]:
    return [(method, SHARES[method]) for method in methods]


def test_a_method_that_is_worse_on_every_prompt_is_told_apart_although_the_prompts_differ_more():
    spread = np.linspace(0, 10, 20)
    rows = rows_of(a3=spread, epic=spread + 0.1)
    assert leaders(rows, keys("epic", "a3"), "kl") == keys("a3")
    assert leaders(rows.rename(columns={"kl": "score"}), keys("epic", "a3"), "score") == keys("epic")


def test_methods_that_win_on_as_many_prompts_are_not_told_apart():
    around = np.tile([0.0, 1.0], 10)
    rows = rows_of(a3=around, epic=1.01 - around, full_reuse=around + 5)
    assert leaders(rows, keys("full_reuse", "epic", "a3"), "kl") == keys("a3", "epic")


def test_of_equally_good_methods_the_one_that_recomputes_least_is_the_best():
    rows = rows_of(a3=np.ones(12), epic=np.ones(12))
    assert leaders(rows, keys("a3", "epic"), "kl") == keys("epic", "a3")


@given(st.integers(1, FEWEST - 1))
def test_few_prompts_rank_nothing(prompts):
    rows = rows_of(a3=np.zeros(prompts), epic=np.ones(prompts))
    assert leaders(rows, keys("a3", "epic"), "kl") == []


def test_only_prompts_that_all_methods_answered_are_compared():
    rows = rows_of(a3=np.zeros(12), epic=np.ones(FEWEST - 1))
    assert leaders(rows, keys("a3", "epic"), "kl") == []
    assert leaders(rows, keys("a3"), "kl") == keys("a3")


@given(st.integers(0, 2**32 - 1), st.integers(FEWEST, 30))
def test_the_first_has_the_best_mean_and_ties_are_those_whose_interval_contains_zero(seed, prompts):
    rng = np.random.default_rng(seed)
    values = {method: rng.normal(size=prompts) for method in ("full_reuse", "a3", "epic")}
    first, *tied = leaders(rows_of(**values), keys(*values), "kl")
    best = min(values, key=lambda method: values[method].mean())
    assert first == (best, SHARES[best])
    for method, column in values.items():
        drawn = np.random.default_rng(0).integers(prompts, size=(2000, prompts))
        low = np.percentile((column - values[best])[drawn].mean(axis=1), 2.5)
        if method != best and abs(low) > 1e-12:
            assert ((method, SHARES[method]) in tied) == (low < 0)


def test_divergence_ranks_where_it_was_measured():
    rows = rows_of(full_prefill=[0.0], a3=[0.5])
    assert measure_of(rows) == "kl"
    assert measure_of(rows.assign(kl=np.nan)) == measure_of(rows.drop(columns="kl")) == "score"


@pytest.mark.parametrize("method", SHARES)
def test_what_recomputes_everything_is_no_candidate(method):
    found = partial_methods(rows_of(**{name: [0.0] for name in SHARES}))
    assert ((method, SHARES[method]) in found) == (method != "full_prefill")
