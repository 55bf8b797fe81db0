"""Figures show the numbers of their tables, look the same on every run, and can be told apart in grey."""

import json
import re
from functools import cache
from itertools import combinations, pairwise

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from ragkv import figures
from ragkv.figures.latency import BARS
from ragkv.figures.style import METHODS, OTHERS, STYLE, label, legend_below, look, looks
from ragkv.results.comparison import summarise
from ragkv.results.fidelity import fidelity_by_method
from ragkv.results.frontier import costs

CEILINGS = {"tflops": 500.0, "memory_gbs": 2000.0, "pinned_gbs": 50.0}
SOURCE = {"results": "p/m/b/t.parquet", "commit": "0123abc"}
PLACES = {"chunks": [0, 20, 40], "evidence": [21, 22, 45]}
CONTEXT_NAMES = ("the prefix", "similar chunks", "a learned context and BOS")
SELECTED = {"a3": [3, 21, 22], "epic": [0, 20, 40, 41]}


def results() -> pd.DataFrame:
    """Scores by depth and length of five methods, two of them at three ratios; `epic` recomputes less than it may."""
    runs = [("full_prefill", 1.0), ("full_reuse", 0.0), *((m, r) for m in ("a3", "epic") for r in (0.05, 0.15, 0.3))]
    runs.append(("surprisal", 0.15))
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {"prompt": f"{length}-{depth}", "length": length, "depth": depth, "method": method, "ratio": ratio}
            | {"score": rng.random(), "kl": rng.random() * (method != "full_prefill")}
            | {"ttft": 1 + rng.random(), "load": 0.2, "select": 0.1, "tpot": 0.1}
            | {"share": ratio / (3 if method == "epic" else 1), "stored_bytes": 8e3}
            | {"cache_tokens": 10, "cache_bytes": 100}
            for length in (128, 256)
            for depth in (0, 50, 100)
            for method, ratio in runs
        ]
    )


def bench() -> pd.DataFrame:
    """Rows as a bench records them: a full prefill and two methods, from the GPU and from elsewhere, at two lengths."""
    rows = []
    for tokens in (1000, 2000):
        rows.append({"tokens": tokens, "tier": "", "selector": "full_prefill", "ratio": 1.0, "p50": tokens / 10})
        for slower, tier in enumerate(("cuda", "page cache"), 1):
            for selector, ratio, hops in (("a3", 0.15, None), ("probe", 0.02, 3)):
                stages = {"open": 1.0, "load": 2.0 * slower, "select": 3.0, "compute": tokens / 100}
                row = {"tokens": tokens, "tier": tier, "selector": selector, "ratio": ratio, "hops": hops} | stages
                rows.append(row | {"p50": sum(stages.values())})
    return pd.DataFrame(rows).assign(flop=lambda t: 1e9 * t["tokens"] * t["p50"], bytes=lambda t: 1e6 * t["tokens"])


def speeds_and_fidelity() -> pd.DataFrame:
    """Three methods at three ratios each, and a full prefill; more recomputed is slower and closer."""
    rows = [("full_prefill", 1.0, 1.0, 1.0)]
    for better, method in enumerate(("epic", "a3", "a3 behind a learned context"), 1):
        rows += [(method, ratio, better * (0.2 + ratio) / 2, 20 / (1 + 10 * ratio)) for ratio in (0.02, 0.05, 0.15)]
    return pd.DataFrame(rows, columns=["method", "ratio", "recovered_kl", "speed-up"])


DRAWN = {
    "accuracy_over_share": lambda: figures.accuracy_over_share(results(), "t"),
    "score_by_method": lambda: figures.score_by_method(summarise(results()), "t"),
    "heat_map": lambda: figures.heat_map(results(), "t"),
    "frontier": lambda: figures.frontier(costs(results()), "t"),
    "recovered_over_share": lambda: figures.recovered_over_share(fidelity_by_method(results()), "t"),
    "recomputed_tokens": lambda: figures.recomputed_tokens(SELECTED, 60, title="t", **PLACES),
    "attention_map": lambda: figures.attention_map(np.arange(240.0).reshape(4, 60), title="t", **PLACES),
    "ttft_by_method": lambda: figures.ttft_by_method(results(), "t"),
    "ttft_over_length": lambda: figures.ttft_over_length(bench(), "t"),
    "stages": lambda: figures.stages(bench(), 2000, "t"),
    "roofline": lambda: figures.roofline(bench(), CEILINGS, "t"),
    "speed_over_fidelity": lambda: figures.speed_over_fidelity(speeds_and_fidelity(), "t"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each figure's file, drawn when it is first asked for."""
    folder = tmp_path_factory.mktemp("figures")
    return cache(lambda name: figures.save(DRAWN[name](), folder / name / "f.png", SOURCE))


LABELS = [*METHODS, *(f"{method} behind {context}" for method in METHODS for context in CONTEXT_NAMES)]
MARGIN = 0.15  # inches that a legend may leave free beside it


@settings(max_examples=40)
@given(st.lists(st.sampled_from(LABELS), min_size=1, max_size=25), st.floats(4, 10))
def test_a_legend_has_as_many_columns_as_fit(labels, width):
    """At most five, as wide as matplotlib draws them."""

    def width_in(columns: int) -> float:
        figure = Figure(figsize=(width, 3), dpi=600)  # where letters are not made narrower to fit into pixels
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        figure.draw_without_rendering()
        return legend.get_window_extent().width / figure.dpi

    handles = [Line2D([], [], label=label) for label in labels]
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, 3))
        legend_below(figure, handles)
        chosen = figure.legends[0]._ncols
        assert chosen == 1 or width_in(chosen) <= width
        assert chosen == min(5, len(labels)) or width_in(chosen + 1) > width - MARGIN


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_results_give_the_same_files(name, saved, tmp_path):
    """Also if the session's settings differ; drawing does not change them."""
    first = saved(name)
    with matplotlib.rc_context({"font.size": 23, "axes.grid": True, "savefig.dpi": 30, "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        second = figures.save(DRAWN[name](), tmp_path / "f.png", SOURCE)
        assert dict(matplotlib.rcParams) == before
    for ending in (".png", ".pdf"):
        assert first.with_suffix(ending).read_bytes() == second.with_suffix(ending).read_bytes()


LONG = {name: f"{name} behind a learned context" for name in ("epic", "surprisal", "full_reuse", "probe")}


def overlapping(boxes) -> list[tuple[int, int]]:
    """The pairs of boxes that overlap by more than a point."""
    pairs = combinations([box.padded(-0.5) for box in boxes], 2)
    return [(one.bounds, other.bounds) for one, other in pairs if one.overlaps(other)]


@pytest.mark.parametrize("names", ["short", "long"])
@pytest.mark.parametrize("name", [name for name in DRAWN if name not in ("roofline",)])
def test_legends_are_beside_the_data_and_labels_of_ticks_apart(name, names, monkeypatch):
    if names == "long":
        short = results()
        monkeypatch.setattr(f"{__name__}.results", lambda: pd.concat([short, short.replace({"method": LONG})]))
    figure = DRAWN[name]()
    figure.draw_without_rendering()
    panels = [axes.get_window_extent() for axes in figure.axes]
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert figure.bbox.padded(1).contains(*box.min) and figure.bbox.padded(1).contains(*box.max)
        assert not [panel for panel in panels if panel.padded(-0.5).overlaps(box)]
    assert not [axes for axes in figure.axes if axes.get_legend()], "a legend within a panel may hide data"
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            boxes = [label.get_window_extent() for label in labels if label.get_rotation() == 0]
            assert overlapping([box for box in boxes if box.width > 1]) == []


@pytest.mark.parametrize("name", DRAWN)
def test_both_files_say_where_they_come_from(name, saved):
    path = saved(name)
    printed = path.with_suffix(".pdf").read_bytes()
    with Image.open(path) as image:
        assert image.text["Source"] == "results p/m/b/t.parquet, commit 0123abc"
    assert re.search(rb"/Subject \((.*?)\)", printed)[1] == b"results p/m/b/t.parquet, commit 0123abc"
    assert b"CreationDate" not in printed
    assert b"/FontFile2" in printed or b"/Type0" in printed  # TrueType: its text can be selected


SETTINGS = ["a3 at layer 2", "a3 at layer 3", "probe on fp8", "probe behind the prefix", "a3 behind a learned context"]
NAMES = st.lists(st.sampled_from([*METHODS, *SETTINGS, "mine", "other", "third"]), unique=True)


@given(NAMES, st.randoms())
def test_a_method_looks_the_same_in_any_company(names, random):
    """Built-in methods and contexts in all figures, and all others wherever the same methods are compared."""
    shown = looks(names)
    assert list(shown) == names
    assert all(shown[name] == look(name) for name in names if name in METHODS)
    assert all(shown[name] == looks([name])[name] for name in names if "behind" in name)
    assert shown == looks(random.sample(names, len(names)))
    assert len({str(sorted(style.items())) for style in shown.values()}) == len(names)


@given(NAMES)
def test_no_two_methods_share_a_colour(names):
    """Settings have the colour and the marker of their method, and of no other."""
    methods = {}
    for name, style in looks(names).items():
        method = name.split(" ")[0]
        assert methods.setdefault(style["color"], method) == method
        if method in METHODS:
            assert (style["color"], style["marker"]) == METHODS[method]


def luminance(colour) -> float:
    return float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114)))


def test_neighbours_differ_in_grey():
    """Eight methods by marker, adjacent stages by hatching or brightness, scores by brightness."""
    assert len({marker for _, marker in METHODS.values()}) == len(METHODS)
    for (one, hatch), (other, next_hatch) in pairwise(BARS.values()):
        assert hatch != next_hatch or abs(luminance(one) - luminance(other)) > 0.15
    greys = [luminance(matplotlib.colormaps["cividis"](value)) for value in np.linspace(0, 1, 50)]
    assert np.all(np.diff(greys) > 0)
    assert len({colour for colour, _ in METHODS.values()} | set(OTHERS)) == len(METHODS) + len(OTHERS)


def curves_of(axes) -> dict[str, np.ndarray]:
    """The points of every method in a panel."""
    return {container.get_label(): container.lines[0].get_xydata() for container in axes.containers}


def test_accuracies_stand_at_what_was_recomputed():
    """Every method is there, also one with a single ratio, and none stands at a ratio that it did not use."""
    rows = results()
    (axes,) = figures.accuracy_over_share(rows, "t").axes
    panel = figures.frontier(costs(rows), "t").axes[0]
    assert set(curves_of(axes)) == {"a3", "epic", "surprisal"}
    for method, points in curves_of(axes).items():
        means = rows[rows["method"] == method].groupby("ratio")[["share", "score"]].mean()
        assert points == pytest.approx(means.to_numpy() * [100, 1])
        assert curves_of(panel)[method] == pytest.approx(points)


def test_the_gap_is_drawn_at_what_was_recomputed():
    rows = results()
    better = rows["method"] == "full_prefill"
    rows["score"] = rows["score"].mask(better, 1.0).mask(rows["method"] == "full_reuse", 0.0)
    table = fidelity_by_method(rows)
    by_kl, by_score = figures.recovered_over_share(table, "t").axes
    for panel, column in ((by_kl, "recovered_kl"), (by_score, "recovered_score")):
        for method, points in curves_of(panel).items():
            expected = table.loc[table["method"] == method, ["share", column]].to_numpy() * [100, 1]
            assert points == pytest.approx(expected)
        low, high = panel.get_ylim()
        assert table[column].between(low, high).all()
        across = [line.get_ydata()[0] for line in panel.lines if len(set(line.get_ydata())) == 1]
        assert {0, 1} <= set(across)


def test_a_gap_of_one_answer_has_no_panel():
    rows = results()
    full = rows["method"] == "full_prefill"
    rows["score"] = 0.0
    rows.loc[full & (rows["prompt"] == "128-0"), "score"] = 1.0
    (panel,) = figures.recovered_over_share(fidelity_by_method(rows), "t").axes
    assert panel.get_title() == "KL along the answer"


def test_bytes_have_a_panel_only_where_they_differ():
    rows = results()
    assert len(figures.frontier(costs(rows), "t").axes) == 2
    rows.loc[rows["method"] == "epic", "stored_bytes"] /= 2
    assert len(figures.frontier(costs(rows), "t").axes) == 3


@pytest.mark.parametrize("value", ["kl", "score"])
def test_the_needle_figure_has_every_method_and_place(value):
    """The best method first; its colours are the divergence, or the score where there is none."""
    rows = results() if value == "kl" else results().drop(columns="kl")
    axes = figures.heat_map(rows, "t").axes[0]
    means = rows.groupby(["method", "ratio"])[value].mean()
    means = means.drop("full_prefill") if value == "kl" else means
    order = means.sort_values(ascending=value == "kl").index
    names = [tick.get_text().split(" (")[0] for tick in axes.get_yticklabels()]
    assert names == [label(*key) for key in order]
    expected = rows.pivot_table(index=["method", "ratio"], columns=["length", "depth"], values=value).loc[order]
    np.testing.assert_allclose(axes.images[0].get_array().data, expected.to_numpy())
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "50", "100"] * 2


def test_a_cross_marks_needles_that_were_not_found():
    rows = results()
    axes = figures.heat_map(rows, "t").axes[0]
    scores = rows.pivot_table(index=["method", "ratio"], columns=["length", "depth"], values="score")
    texts = [text.get_text() for text in axes.texts]
    missed = (scores.drop("full_prefill") < 0.5).to_numpy()
    assert sum(text.endswith("x") for text in texts) == missed.sum()
    assert len(texts) == missed.size


def test_without_plain_reuse_the_divergence_itself_is_drawn():
    rows = results()
    table = fidelity_by_method(rows[rows["method"] != "full_reuse"])
    (panel,) = figures.recovered_over_share(table, "t").axes
    for method, points in curves_of(panel).items():
        assert points[:, 1] == pytest.approx(table.loc[table["method"] == method, "kl"].to_numpy())


@pytest.mark.parametrize(
    ("method", "ratio", "share", "expected"),
    [
        ("probe", 0.15, 0.00781, "probe 15% (0.781%)"),
        ("probe", 0.15, 0.1497, "probe 15%"),
        ("a3", 0.02, 0.015625, "a3 2% (1.56%)"),
        ("full_reuse after the prefix", 0.0, 0.0, "full_reuse after the prefix 0%"),
        ("full_prefill", 1.0, 1.0, "full_prefill"),
        ("a3", 0.15, None, "a3 15%"),
    ],
)
def test_a_label_says_what_was_recomputed_if_it_is_not_the_ratio(method, ratio, share, expected):
    assert label(method, ratio, share) == expected


def test_labels_of_every_method_say_what_was_recomputed():
    rows = results()
    drawn = [figures.score_by_method(summarise(rows), "t"), figures.ttft_by_method(rows, "t")]
    for figure in drawn:
        names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
        assert names[:3] == ["full_prefill", "full_reuse", "a3 5%"]
        assert names[5:] == ["epic 5% (1.67%)", "epic 15% (5%)", "epic 30% (10%)", "surprisal 15%"]
    names = [tick.get_text() for tick in figures.heat_map(rows, "t").axes[0].get_yticklabels()]
    assert {"full_reuse", "a3 5%", "epic 5% (1.67%)", "epic 30% (10%)", "surprisal 15%"} <= set(names)


def test_settings_of_a_method_have_other_lines_and_fillings():
    shown = looks(["a3 behind the prefix", "mine", "a3", "a3 on fp8", "probe 15%"])
    variants = [shown["a3 behind the prefix"], shown["a3 on fp8"]]
    assert all(style.items() >= look("a3").items() for style in variants)
    assert variants[0]["linestyle"] != variants[1]["linestyle"]
    assert "full" not in {style["fillstyle"] for style in variants}
    assert shown["probe 15%"] == look("probe"), "the only setting looks like the method"
    assert shown["mine"]["color"] in OTHERS


def test_every_recomputed_token_and_chunk_is_drawn():
    (axes,) = figures.recomputed_tokens(SELECTED, 60, title="t", **PLACES).axes
    assert [line.get_xdata()[0] for line in axes.lines] == PLACES["chunks"]
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels == ["evidence", "a3 (5%)", "epic (6.67%)"]
    rows = [text.split(" ")[0] for text in labels]
    for row, name in enumerate(rows):
        drawn = [e.get_positions() for e in axes.collections if e.get_lineoffset() == row]
        expected = set(SELECTED.get(name, PLACES["evidence"]))
        assert sorted(np.concatenate(drawn)) == sorted(expected)
        assert set(drawn[-1]) == expected & set(PLACES["evidence"])


def test_without_evidence_there_is_no_row_for_it():
    (axes,) = figures.recomputed_tokens(SELECTED, 60, [0, 20], [], "t").axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a3 (5%)", "epic (6.67%)"]


def test_a_panel_for_each_tier_and_full_prefill_in_all():
    rows = bench()
    panels = figures.ttft_over_length(rows, "t").axes
    assert [panel.get_title() for panel in panels] == ["from the GPU", "from the page cache"]
    for panel, tier in zip(panels, ("cuda", "page cache"), strict=True):
        lines = {line.get_label(): line.get_ydata().tolist() for line in panel.lines}
        assert list(lines) == ["full_prefill", "a3 15%", "probe 2%, 3 hops"]
        assert lines["full_prefill"] == [100, 200]
        assert lines["a3 15%"] == rows.loc[(rows["tier"] == tier) & (rows["selector"] == "a3"), "p50"].tolist()


def test_stages_add_up():
    rows = bench()
    (axes,) = figures.stages(rows, 2000, "t").axes
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
    assert list(widths) == ["open", "load", "select", "compute", "not split"]
    assert np.sum(list(widths.values()), axis=0) == pytest.approx(rows.loc[rows["tokens"] == 2000, "p50"])
    assert widths["not split"] == [200, 0, 0, 0, 0]
    assert widths["load"] == [0, 2, 2, 4, 4]


def test_the_roofline_by_hand():
    """Each prefill at (operations / bytes, operations / second), under a roof that bends where both ceilings meet."""
    rows = bench()
    (axes,) = figures.roofline(rows, CEILINGS, "t").axes
    drawn = sorted(tuple(point) for dots in axes.collections for point in dots.get_offsets())
    expected = sorted(zip(rows["flop"] / rows["bytes"], rows["flop"] / (rows["p50"] / 1e3) / 1e12, strict=True))
    assert np.array(drawn) == pytest.approx(np.array(expected))
    low, ridge, high = axes.lines[-1].get_xydata()
    assert low[1] == pytest.approx(low[0] * 2.0)  # TFLOP/s at 2 TB/s
    assert ridge.tolist() == pytest.approx([250, 500])
    assert high[1] == 500
    hollow = [dots for dots in axes.collections if np.allclose(dots.get_facecolor(), 1)]
    assert sum(len(dots.get_offsets()) for dots in hollow) == (rows["tier"] == "page cache").sum()


def test_every_backend_is_drawn_under_the_ceiling():
    speeds = pd.DataFrame([{"tokens": t, "backend": b, "tflops": t / 2} for b in ("sdpa", "triton") for t in (10, 20)])
    (axes,) = figures.attention_speed(speeds, 99.0, "t").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[5, 10], [5, 10], [99, 99]]


def test_results_of_an_older_version_are_refused_by_name():
    old = bench().drop(columns=["flop", "select"]).assign(open=np.nan)
    with pytest.raises(ValueError, match=r"no flop: .* measure them again"):
        figures.roofline(old, CEILINGS, "t")
    with pytest.raises(ValueError, match="no open, select: "):
        figures.stages(old, 2000, "t")
    with pytest.raises(ValueError, match=r"no prompt of 5 tokens was measured: choose one of \[1000, 2000\]"):
        figures.stages(bench(), 5, "t")


def test_recorded_rows_are_drawn(tmp_path):
    """As they come back from a JSON file."""
    (tmp_path / "rows.json").write_text(json.dumps(bench().to_dict("records")))
    rows = pd.DataFrame(json.loads((tmp_path / "rows.json").read_text()))
    assert len(figures.roofline(rows, CEILINGS, "t").axes[0].collections) == 5
    assert len(figures.ttft_over_length(rows, "t").axes) == 2


def test_speed_beside_fidelity_shows_each_ratio_in_order():
    table = speeds_and_fidelity()
    (axes,) = figures.speed_over_fidelity(table.sample(frac=1, random_state=1), "t").axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    shown = {tuple(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in lines}
    expected = table[table["method"] != "full_prefill"].sort_values("ratio").groupby("method")
    assert shown == {
        tuple(zip(points["speed-up"], 100 * points["recovered_kl"], strict=True)) for _, points in expected
    }
