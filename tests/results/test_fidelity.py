"""Distances between distributions, the share of a gap that is recovered, and Wilson's interval: their definitions."""

import math
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from ragkv.results.comparison import RESAMPLES, interval, summarise
from ragkv.results.fidelity import (
    FIDELITY,
    agreement,
    fidelity,
    fidelity_by_method,
    kl_divergence,
    negative_log_likelihood,
    pooled,
    recovered,
)

SCORES = st.floats(0, 1, width=32)


@st.composite
def logit_pairs(draw):
    """Two logits (tokens, vocab) of one shape, and an answer (tokens,)."""
    tokens, vocab = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    values = st.lists(st.floats(-30, 30, width=32), min_size=tokens * vocab, max_size=tokens * vocab)
    full, method = (torch.tensor(draw(values)).reshape(tokens, vocab) for _ in range(2))
    ids = torch.tensor(draw(st.lists(st.integers(0, vocab - 1), min_size=tokens, max_size=tokens)))
    return full, method, ids


def probabilities(logits):
    powers = [math.exp(value) for value in logits]
    return [power / sum(powers) for power in powers]


@given(logit_pairs())
def test_the_divergence_is_the_sum_over_the_vocabulary(pair):
    full, method, _ = pair
    expected = [
        sum(p * math.log(p / q) for p, q in zip(probabilities(f), probabilities(m), strict=True))
        for f, m in zip(full.tolist(), method.tolist(), strict=True)
    ]
    assert kl_divergence(full, method).tolist() == pytest.approx(expected, abs=1e-9)


@given(logit_pairs(), st.floats(-100, 100))
def test_the_divergence_is_zero_for_equal_distributions_only(pair, shift):
    full, method, _ = pair
    assert kl_divergence(full, full.double() + shift).max() < 1e-9
    assert (kl_divergence(full, method) >= 0).all()
    changed = full.clone()
    changed[:, 0] += 1  # one logit more: another distribution
    share = full.double().softmax(-1)[:, 0]
    assert (kl_divergence(full, changed)[(share > 1e-3) & (share < 0.999)] > 0).all()


@given(logit_pairs())
def test_the_likelihood_is_the_cross_entropy(pair):
    full, _, ids = pair
    expected = cross_entropy(full.double(), ids, reduction="none")
    assert torch.allclose(negative_log_likelihood(full, ids), expected, rtol=1e-9, atol=1e-9)


@given(logit_pairs())
def test_a_row_holds_the_first_token_and_the_mean_over_the_answer(pair):
    full, method, ids = pair
    row = fidelity(full, method, ids)
    distances, same = kl_divergence(full, method), agreement(full, method)
    assert row["kl_first"] == distances[0] and row["kl"] == pytest.approx(float(distances.mean()))
    assert row["agreement_first"] == float(full[0].argmax() == method[0].argmax())
    assert row["agreement"] == sum(same.tolist()) / len(same)
    assert row["nll"] == pytest.approx(float(negative_log_likelihood(method, ids).mean()))
    assert fidelity(full, full, ids)["kl"] == 0 and fidelity(full, full, ids)["agreement"] == 1


# the share of the gap


def results(column="score", **values):
    """Rows of methods by name, with a value per prompt each."""
    ratios = {"full_prefill": 1.0, "full_reuse": 0.0}
    return pd.DataFrame(
        [
            {"prompt": f"p{number}", "method": method, "ratio": ratios.get(method, 0.15), column: value}
            for method, column_values in values.items()
            for number, value in enumerate(column_values)
        ]
    )


def shares(table):
    return table.set_index("method")["recovered"].to_dict()


@settings(max_examples=10)
@given(st.integers(2, 12), st.data())
def test_shares_and_intervals_are_those_of_an_obvious_version(prompts, data):
    scores = st.lists(SCORES, min_size=prompts, max_size=prompts)
    full, reuse, method = ([*data.draw(scores)] for _ in range(3))
    table = recovered(results(full_prefill=full, a3=method, full_reuse=reuse)).set_index("method").loc["a3"]

    def share(chosen):
        means = [np.mean([values[i] for i in chosen]) for values in (method, reuse, full)]
        return (means[0] - means[1]) / (means[2] - means[1]) if means[2] > means[1] + 1e-12 else np.nan

    expected = share(range(prompts))
    drawn = np.random.default_rng(0).integers(prompts, size=(RESAMPLES, prompts))
    resampled = np.array([share(chosen) for chosen in drawn])
    assert table["recovered"] == pytest.approx(expected, nan_ok=True, rel=1e-6)
    if np.isnan(resampled).mean() > 0.025:
        assert np.isnan([table["low"], table["high"]]).all()
    else:
        limits = np.nanpercentile(resampled, [2.5, 97.5])
        assert [table["low"], table["high"]] == pytest.approx(limits, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("column", ["score", "kl", "nll", "agreement"])
def test_reuse_recovers_nothing_full_prefill_everything_and_the_middle_a_half(column):
    rng = np.random.default_rng(1)
    full, gap = rng.random(20), rng.random(20)
    reuse = full + gap if column in ("kl", "nll") else full - gap
    rows = results(column, full_prefill=full, half=(full + reuse) / 2, full_reuse=reuse)
    table = recovered(rows, column).set_index("method")
    expected = {"full_prefill": 1.0, "half": 0.5, "full_reuse": 0.0}
    assert list(table.index) == list(expected)
    for method, share in expected.items():  # every prompt alike: prompts are resampled for all methods together
        assert table.loc[method, ["recovered", "low", "high"]].tolist() == pytest.approx([share] * 3)


def test_the_divergence_of_full_prefill_is_zero_so_its_share_is_what_reuse_has_lost_less():
    rows = results("kl", full_prefill=[0, 0], a3=[0.1, 0.3], full_reuse=[0.4, 0.6])
    assert shares(recovered(rows, "kl"))["a3"] == pytest.approx((0.5 - 0.2) / 0.5)


@pytest.mark.parametrize("full", [[0.5, 0.5], [0.2, 0.2]])
def test_without_a_gap_there_is_no_share(full):
    table = recovered(results(full_prefill=full, a3=[1, 0], full_reuse=[0.5, 0.5]))
    assert table[["recovered", "low", "high"]].isna().all(axis=None)


def test_a_gap_of_few_prompts_has_a_share_but_no_interval():
    full, reuse = [1] * 30, [0, *[1] * 29]  # a resample misses the first prompt in e**-1 of all cases
    table = recovered(results(full_prefill=full, a3=full, full_reuse=reuse))
    assert shares(table)["a3"] == 1 and table[["low", "high"]].isna().all(axis=None)


def test_prompts_that_a_method_has_not_answered_are_left_out():
    rows = results(full_prefill=[1, 1, 1], a3=[1, 0], full_reuse=[0, 0, 0])
    assert shares(recovered(rows))["a3"] == 0.5
    elsewhere = rows.assign(
        prompt=[prompt + method for prompt, method in zip(rows["prompt"], rows["method"], strict=True)]
    )
    with pytest.raises(ValueError, match="no prompt was answered by every method"):
        recovered(elsewhere)


def test_both_ends_of_the_gap_are_needed():
    for missing in ("full_prefill", "full_reuse"):
        rows = results(full_prefill=[1], a3=[1], full_reuse=[0])
        with pytest.raises(ValueError, match=f"needs results of {missing}"):
            recovered(rows[rows["method"] != missing])


# what a table of results says of every method


def evaluated(prompts=6, methods=(("full_prefill", 1.0), ("full_reuse", 0.0), ("a3", 0.1), ("a3", 0.3))):
    rng = np.random.default_rng(3)
    return pd.DataFrame(
        [
            {"prompt": f"p{n}", "length": n % 2, "method": method, "ratio": ratio, "share": ratio / 2}
            | {"score": float(rng.integers(2)) if method != "full_prefill" else 1.0}
            | {name: rng.random() * (method != "full_prefill") for name in FIDELITY}
            for n in range(prompts)
            for method, ratio in methods
        ]
    )


def test_a_method_has_its_means_and_its_shares():
    rows = evaluated()
    table = fidelity_by_method(rows)
    assert table[["method", "ratio"]].to_numpy().tolist() == rows[["method", "ratio"]].to_numpy()[:4].tolist()
    assert table["share"].tolist() == pytest.approx([0.5, 0, 0.05, 0.15])
    for name in FIDELITY:
        assert table[name].tolist() == pytest.approx(
            rows.groupby(["method", "ratio"], sort=False)[name].mean().tolist()
        )
        inside = (table[f"{name}_low"] <= table[name]) & (table[name] <= table[f"{name}_high"])
        assert inside.all()
    for column in ("kl", "score"):
        alone = recovered(rows, column)
        found = [f"recovered_{column}", f"recovered_{column}_low", f"recovered_{column}_high"]
        assert np.allclose(table[found], alone[["recovered", "low", "high"]], equal_nan=True)


def test_labels_divide_the_prompts():
    rows = evaluated()
    table = fidelity_by_method(rows, by=["length"])
    assert table["length"].tolist() == [0] * 4 + [1] * 4
    odd = fidelity_by_method(rows[rows["length"] == 1])
    pd.testing.assert_frame_equal(table[4:].drop(columns="length").reset_index(drop=True), odd)


def test_tasks_are_pooled_prompt_by_prompt_at_the_ratios_that_all_have():
    one = evaluated(prompts=6)
    other = evaluated(prompts=2, methods=[("full_prefill", 1.0), ("full_reuse", 0.0), ("a3", 0.3)])
    rows = pooled({"one": one, "other": other})
    assert list(rows.columns) == list(one.columns)
    assert rows["prompt"].nunique() == 6 + 2  # although both have a p0 and a p1
    assert not ((rows["method"] == "a3") & (rows["ratio"] == 0.1)).any()
    found = rows.groupby(["method", "ratio"])["kl"].mean()["a3", 0.3]
    values = [task.loc[(task["method"] == "a3") & (task["ratio"] == 0.3), "kl"] for task in (one, other)]
    assert found == pytest.approx(np.concatenate(values).mean())


def test_what_cannot_be_said_is_left_out():
    rows = evaluated()
    no_gap = fidelity_by_method(rows[rows["method"] != "full_reuse"])
    assert not [name for name in no_gap if name.startswith("recovered")] and "kl" in no_gap
    apart = rows.assign(prompt=rows["prompt"] + rows["method"])  # no prompt was answered by all
    assert not [name for name in fidelity_by_method(apart) if name.startswith("recovered")]
    old = fidelity_by_method(rows.drop(columns=[*FIDELITY, "share"]))
    assert list(old)[:3] == ["method", "ratio", "recovered_score"]  # an older table


def of_right_answers(right, total):
    """The score and its interval, where `right` of `total` answers are right."""
    scores = [1.0] * right + [0.0] * (total - right)
    rows = pd.DataFrame({"prompt": range(total), "method": "a3", "ratio": 0.1, "score": scores})
    return summarise(rows).loc[0, ["score", "low", "high"]]


@given(st.integers(1, 300), st.floats(0, 1))
def test_the_limits_of_right_answers_are_the_shares_that_they_just_do_not_rule_out(total, part):
    """Wilson's definition: the share lies as many standard errors of the limit from it as the confidence says."""
    score, low, high = of_right_answers(round(part * total), total)
    assert 0 <= low <= score <= high <= 1
    for limit in (low, high):
        if 1e-9 < limit < 1 - 1e-9:
            errors = NormalDist().inv_cdf(0.975)
            assert abs(score - limit) == pytest.approx(errors * math.sqrt(limit * (1 - limit) / total), rel=1e-6)


def test_the_interval_of_right_answers_has_a_width_where_all_or_none_are_right():
    assert of_right_answers(0, 10).tolist() == pytest.approx([0, 0, 0.2775], abs=1e-4)
    assert of_right_answers(10, 10).tolist() == pytest.approx([1, 1 - 0.2775, 1], abs=1e-4)


def test_other_scores_have_a_bootstrap_interval():
    rows = evaluated()
    assert summarise(rows)["low"][0] < 1, "although all six are right"
    rows.loc[0, "score"] = 0.5
    assert summarise(rows)["low"][2] == interval(rows["score"].to_numpy()[2::4])["mean_low"]
