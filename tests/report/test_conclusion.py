"""What the report says on top is what the rows say: the best method, its interval and cost, and its ties."""

import numpy as np
import pandas as pd
import pytest

from ragkv.report.conclusion import Compared, conclude

RUNS = {  # method and ratio: mean divergence, TTFT in seconds
    ("full_prefill", 1.0): (0.0, 0.2),
    ("full_reuse", 0.0): (2.0, 0.02),
    ("a3", 0.05): (1.0, 0.05),
    ("a3", 0.15): (0.1, 0.1),
    ("probe", 0.15): (0.1, 0.04),
    ("epic", 0.15): (1.5, 0.1),
}


def rows_of(prompts: int = 21) -> pd.DataFrame:
    """Divergences that differ little between prompts; a3 and probe at 15 % take turns, and probe begins."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.9, 1.1, size=prompts)
    turns = {"a3": 0.05, "probe": -0.05}
    return pd.DataFrame(
        {"prompt": f"p{number}", "method": method, "ratio": ratio, "share": ratio, "score": float(kl < 1), "ttft": ttft}
        | {"kl": kl * noise[number] + (turns.get(method, 0) * (-1) ** number if kl == 0.1 else 0)}
        | {name: 0.0 for name in ("kl_first", "agreement_first", "agreement", "nll", "tpot")}
        for number in range(prompts)
        for (method, ratio), (kl, ttft) in RUNS.items()
    )


def said(rows: pd.DataFrame) -> str:
    return " ".join(conclude(Compared.of({"task": rows}))["sentences"]).replace("&#39;", "'")


def test_the_best_method_is_named_with_what_it_recovers_and_costs():
    rows = rows_of()
    means = rows.groupby(["method", "ratio"])["kl"].mean()
    recovered = 100 * (1 - means["probe", 0.15] / means["full_reuse", 0.0])
    text = said(rows)
    assert text.startswith("<strong>probe 15%</strong> comes closest to full prefill")
    assert f"it recovers {recovered:.0f} % (9" in text
    assert f"a KL divergence of {means['full_reuse', 0.0]:.3f} nats" in text
    assert "recomputes 15 % of the document" in text
    assert "median TTFT is 40 ms: 5.0 times as fast as full prefill, which takes 200 ms" in text
    assert "Its score is 1.00, full prefill's 1.00, plain reuse's 0.00." in text


def test_ties_are_named_and_the_fastest_of_them():
    rows = rows_of()
    tied = "These prompts do not tell it apart from <strong>a3 15%</strong>; "
    assert tied + "it is the fastest of them." in said(rows)
    rows.loc[rows["method"] == "probe", "ttft"] = 0.3
    assert tied + "the fastest of them is <strong>a3 15%</strong>, with a median TTFT of 100 ms." in said(rows)
    assert "All other methods are behind it" in said(rows[rows["method"] != "a3"])


def test_a_slower_method_is_said_to_be_slower():
    assert "slower (0.50 times the speed) than full prefill" in said(rows_of().replace({"ttft": {0.1: 0.4, 0.04: 0.4}}))


def test_few_prompts_rank_nothing():
    conclusion = conclude(Compared.of({"task": rows_of(prompts=9)}))
    assert conclusion["choices"] is None
    assert "too few to rank" in said(rows_of(prompts=9))


def test_without_fidelity_methods_are_ranked_by_their_scores():
    rows = rows_of().drop(columns=["kl", "kl_first", "agreement", "agreement_first", "nll"])
    text = said(rows)
    assert "has the highest score: 1.000" in text
    assert "KL" not in text


def test_without_plain_reuse_the_divergence_itself_is_said():
    rows = rows_of()
    text = said(rows[rows["method"] != "full_reuse"])
    assert "comes closest to full prefill: its KL divergence is 0." in text


def test_names_are_text():
    assert "<b>" not in said(rows_of().replace({"method": {"a3": "<b>", "probe": "<b>x"}}))


@pytest.mark.parametrize("budget", ["0%", "5%", "15%"])
def test_the_table_says_what_to_take_for_each_share(budget):
    """The method with the smallest divergence among those that may recompute no more."""
    rows = rows_of()
    choices = conclude(Compared.of({"task": rows}))["choices"].set_index("up to")
    means = rows.groupby(["method", "ratio"])["kl"].mean().drop("full_prefill")
    affordable = means[means.index.get_level_values("ratio") <= float(budget.rstrip("%")) / 100]
    method = affordable.idxmin()[0]
    assert choices.loc[budget, "method"] == ("full_reuse" if method == "full_reuse" else f"{method} {budget}")
