"""Interactive figures hold the numbers of the results, look like the static ones, and are the same on every run."""

import json

import numpy as np
import pandas as pd
import pytest

from ragkv.figures.style import METHODS, looks
from ragkv.report.interactive import SHAPES, charts, script

RUNS = [("full_prefill", 1.0), ("full_reuse", 0.0), ("a3", 0.05), ("a3", 0.15), ("</script><b>", 0.15)]
RUNS += [("a3 behind the prefix", 0.15)]


def rows_of() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"prompt": f"p{number}", "method": method, "ratio": ratio, "share": ratio, "score": rng.random()}
        | {"kl": rng.random() * (method != "full_prefill"), "ttft": 0.1 + rng.random(), "tpot": 0.1}
        for number in range(8)
        for method, ratio in RUNS
    )


def specification(rows: pd.DataFrame, which: int = 0) -> dict:
    return json.loads(str(charts(rows)[which]))


def data_of(chart: dict) -> pd.DataFrame:
    (rows,) = chart["datasets"].values()
    return pd.DataFrame(rows).set_index(["method", "ratio"])


@pytest.mark.parametrize("which", [0, 1])
def test_every_method_has_its_numbers(which):
    rows = rows_of()
    means = rows.groupby(["method", "ratio"]).agg({"kl": "mean", "score": "mean", "ttft": "median"})
    data = data_of(specification(rows, which))
    assert set(data.index) == set(RUNS)
    for key, line in data.iterrows():
        assert line["value"] == pytest.approx(1 - means["kl"][key] / means["kl"]["full_reuse", 0.0], abs=1e-4)
        assert line["score"] == pytest.approx(means["score"][key], abs=1e-4)
        assert line["ttft"] == pytest.approx(1000 * means["ttft"][key], abs=1e-3)
        assert line["share"] == pytest.approx(100 * key[1])


def test_without_fidelity_it_is_the_score():
    rows = rows_of().drop(columns="kl")
    data = data_of(specification(rows))
    assert data["value"].tolist() == data["score"].tolist()


def test_methods_have_the_colours_and_markers_of_the_static_figures():
    points = specification(rows_of())["layer"][2]["encoding"]
    colours, shapes = points["color"]["scale"], points["shape"]["scale"]
    styles = looks(method for method, _ in RUNS)
    assert dict(zip(colours["domain"], colours["range"], strict=True)) == {m: s["color"] for m, s in styles.items()}
    assert dict(zip(shapes["domain"], shapes["range"], strict=True)) == {
        method: SHAPES[style["marker"]] for method, style in styles.items()
    }
    assert {marker for _, marker in METHODS.values()} <= set(SHAPES)


def test_nothing_ends_the_script_element_and_nothing_is_loaded():
    chart = str(charts(rows_of())[0])
    assert "<" not in chart
    assert json.loads(chart)["data"].keys() == {"name"}
    assert "</script" not in script()


def test_the_same_results_give_the_same_figures():
    assert charts(rows_of()) == charts(rows_of())
