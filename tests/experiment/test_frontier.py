"""What methods cost, areas under their curves, oracles and failures."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import memory_store, plain, random_prompt
from hypothesis import given
from hypothesis import strategies as st

from ragkv import precompute
from ragkv.experiment.oracle import deviations, oracle_overlap
from ragkv.figures import frontier
from ragkv.prompt import Prompt
from ragkv.results.frontier import areas, costs, failures


def rows_of(curves: dict[str, dict[float, list[float]]]) -> pd.DataFrame:
    """Results with these scores, prompt by prompt, by method and ratio."""
    table = [
        {"prompt": f"p{n}", "method": method, "ratio": ratio, "score": score, "ttft": 1.0, "tpot": 1.0}
        | {"share": ratio / 2, "stored_bytes": 8, "cache_tokens": 10, "cache_bytes": 100}
        for method, curve in curves.items()
        for ratio, scores in curve.items()
        for n, score in enumerate(scores)
    ]
    return pd.DataFrame(table)


def test_the_area_by_hand():
    rows = rows_of(
        {
            "full_reuse": {0.0: [0, 0]},
            "late": {0.1: [0, 0], 0.4: [1, 1]},  # 0 up to 0.1, then a line up to 1 at 0.4: 0.15 of 0.4
            "early": {0.1: [1, 1], 0.2: [1, 1]},  # a line up to 1 at 0.1, then 1: 0.35 of 0.4
            "once": {0.1: [1, 1]},
        }
    )
    table = areas(rows).set_index("method")
    assert table.index.tolist() == ["early", "late"]
    assert table["area"].tolist() == pytest.approx([0.875, 0.375])
    assert (table["low"] == table["high"]).all()  # the prompts do not differ


def test_an_area_is_over_what_was_recomputed():
    """A method that stops early earns its accuracy at the share that it used, whatever ratio it was given."""
    curves = {"full_reuse": {0.0: [0, 0]}, "all": {0.2: [1, 1], 0.4: [1, 1]}, "stops": {0.2: [1, 1], 0.4: [1, 1]}}
    rows = rows_of(curves)  # shares of 0.1 and 0.2
    rows.loc[rows["method"] == "stops", "share"] = 0.01
    table = areas(rows).set_index("method")["area"]
    assert table.to_dict() == pytest.approx({"all": 1 - 0.05 / 0.2, "stops": 1 - 0.005 / 0.2})


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=2, max_size=5))
def test_areas_are_mean_accuracies(scores):
    """Never beyond the lowest and highest score; and of a constant score that score."""
    curve = {(index + 1) / 10: some for index, some in enumerate(scores)}
    rows = rows_of({"full_reuse": {0.0: [0.5] * 3}, "a": curve, "b": {0.1: [0.5] * 3, 0.2: [0.5] * 3}})
    table = areas(rows).set_index("method")
    means = [np.mean(some) for some in scores] + [0.5]
    assert min(means) - 1e-9 <= table.loc["a", "area"] <= max(means) + 1e-9
    assert table.loc["b", "area"] == pytest.approx(0.5)


def test_costs_are_means_beside_the_scores():
    rows = rows_of({"full_prefill": {1.0: [1, 1]}, "a3": {0.1: [0, 1], 0.2: [1, 1]}})
    table = costs(rows)
    assert table["share"].tolist() == [0.5, 0.05, 0.1]
    assert table["score"].tolist() == [1.0, 0.5, 1.0]
    assert table["difference"].tolist() == [0.0, -0.5, 0.0]


def test_failures_are_what_the_baseline_answers_better():
    rows = rows_of({"full_prefill": {1.0: [1, 1, 0]}, "a3": {0.1: [0, 1, 0]}})
    assert failures(rows, "a3", 0.1) == ["p0"]


def test_what_a_profile_leaves_out_is_left_out():
    """Without plain reuse there is no area, without full prefill no failure, without partial methods no overlap."""
    rows = rows_of({"a3": {0.1: [0, 1], 0.2: [1, 1]}})
    assert areas(rows).empty
    assert failures(rows, "a3", 0.1) == []
    assert frontier(costs(rows), "a profile with one method").axes
    whole = rows_of({"full_prefill": {1.0: [1, 1]}, "full_reuse": {0.0: [0, 1]}})
    assert areas(whole).empty
    assert frontier(costs(whole), "a profile without ratios").axes
    nothing = SimpleNamespace(rows=lambda *task: whole, items=lambda *task: [])
    assert oracle_overlap(nothing, "ruler", "vt_3", None, 3).empty


def test_deviations_against_the_models_own_cache(model, rng):
    """Change and effect from plain forward passes of the model: of the prompt, and of each chunk behind BOS."""
    prompt, store = random_prompt(rng, chunks=(7, 9), prefix=None), memory_store()
    precompute(model, [prompt], store)
    change, effect = deviations(model, prompt, store)
    _, full = plain(model, prompt)
    values = torch.zeros(16)
    start = 0
    for chunk in prompt.chunks:
        _, alone = plain(model, Prompt([], [], chunk))
        for right, wrong in zip(full.layers, alone.layers, strict=True):  # values carry no position
            gap = right.values[0, :, start : start + len(chunk)] - wrong.values[0]
            values[start : start + len(chunk)] += gap.square().sum((0, 2))
        start += len(chunk)
    assert (change >= values - 1e-4).all()
    assert (change[:7] < 1e-5).all()  # the first chunk stands where it was computed
    assert (effect[:7] < 1e-2).all()
    assert effect[7:].max() > 10 * effect[:7].max()
