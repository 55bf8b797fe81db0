"""Planning past one machine, compared with sums, random draws and definitions."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from ragkv.costs.capacity import break_evens, by_corpus, by_tier, load, ttft
from ragkv.costs.deployment import Deployment, popular
from ragkv.costs.roofline import FULL, Machine
from ragkv.costs.shape import Shape
from ragkv.figures import break_even_over_length, over_corpus, predicted_over_measured

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
MACHINE = Machine("made up", 700.0, 4000.0, {"pinned": 55.0}, (1.2, 2.0, 7.0))
TIERS = {
    "GPU": {"gigabytes": 80},
    "host": {"gigabytes": 200, "gbs": "pinned"},
    "disk": {"gigabytes": 4000, "gbs": 7.0},
    "object store": {"gbs": 1.5, "latency": 20},
}


def deployment(**changes):
    return Deployment(**{"model": LLAMA, "rate": 50.0, "options": {"ratio": 0.15}, "tiers": TIERS} | changes)


@given(st.integers(1, 20_000), st.floats(0, 1), st.floats(0, 2) | st.just(1.0) | st.floats(1 - 1e-9, 1 + 1e-9))
def test_popular_chunks_get_the_sum_of_their_shares(chunks, part, zipf):
    first = int(part * chunks)
    weights = np.arange(1, chunks + 1, dtype=float) ** -zipf
    assert popular(first, chunks, zipf) == pytest.approx(weights[:first].sum() / weights.sum(), abs=1e-6)


def test_a_billion_chunks_agree_with_the_harmonic_numbers():
    assert popular(10**8, 10**9, 0.0) == pytest.approx(0.1)
    assert popular(10**8, 10**9, 1.0) == pytest.approx(  # the harmonic number's expansion
        (math.log(1e8) + np.euler_gamma) / (math.log(1e9) + np.euler_gamma), rel=1e-8
    )


@given(st.integers(1, 10**9), st.floats(0, 1.5), st.lists(st.floats(0, 1e6), max_size=4))
def test_the_shares_of_all_tiers_add_up(chunks, zipf, sizes):
    tiers = {str(i): {"gigabytes": size, "gbs": 1.0} for i, size in enumerate(sizes)} | {"last": {"gbs": 1.0}}
    planned = deployment(tiers=tiers, zipf=zipf)
    shares = planned.shares(chunks)
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= 0
    if sizes and not zipf:
        assert shares["0"] == pytest.approx(min(1, sizes[0] * 1e9 / planned.chunk_bytes / chunks))


def test_the_time_to_load_is_the_mean_over_drawn_prompts():
    """Chunks are drawn by popularity, and each is loaded from the tier that its rank puts it in."""
    planned, chunks = deployment(zipf=0.8), 100_000
    weights = np.arange(1, chunks + 1) ** -0.8
    drawn = np.random.default_rng(0).choice(chunks, (20_000, planned.retrieved), p=weights / weights.sum())
    held = np.array([80, 280, 4280, math.inf]) * 1e9 / (512 * Shape.of(LLAMA).bytes_per_token(2))
    tier = np.searchsorted(held, drawn)  # of every chunk of every prompt
    megabytes = 512 * Shape.of(LLAMA).bytes_per_token(2) / 1e6
    seconds = (megabytes / np.array([math.inf, 55e3, 7e3, 1.5e3]))[tier].sum(1) + 0.02 * (tier == 3).any(1)
    assert load(planned, MACHINE, planned.shares(chunks)) == pytest.approx(seconds.mean(), rel=0.01)


def test_gpus_are_as_few_as_the_utilisation_allows():
    planned, sizes = deployment(zipf=0.8, utilisation=0.6), [10**power for power in range(3, 10)]
    table = by_corpus(planned, MACHINE, sizes)
    assert table["chunks"].tolist() == sizes
    for gpus, time in ((table["gpus"], table["ttft"]), (table["full_gpus"], table["full_ttft"])):
        busy = 50 * time / 1e3
        assert (gpus * 0.6 >= busy).all()
        assert ((gpus - 1) * 0.6 < busy).all()
    assert table["ttft"].is_monotonic_increasing
    assert table["ttft"].iloc[0] == pytest.approx(1e3 * ttft(planned, MACHINE, {"GPU": 1.0}))  # everything fits there
    last = table.iloc[-1]
    bytes_of_a_prompt = 16 * 512 * Shape.of(LLAMA).bytes_per_token(2)
    assert last["terabytes"] == pytest.approx(1e9 * bytes_of_a_prompt / 16 / 1e12)
    assert last["shared_gbs"] == pytest.approx(50 * last["from object store"] * bytes_of_a_prompt / 1e9)
    one = MACHINE.ttft(Shape.of(LLAMA), FULL, 512)
    assert last["precompute"] == pytest.approx(1e9 * one / 3600)


def test_smaller_formats_take_less_of_everything():
    tables = [
        by_corpus(deployment(format=name, zipf=0.8), MACHINE, [10**6]).iloc[0] for name in ("model", "fp8", "int4")
    ]
    for column in ("terabytes", "ttft", "gpus", "shared_gbs"):
        found = [table[column] for table in tables]
        assert found == sorted(found, reverse=True)
    assert tables[1]["terabytes"] == pytest.approx(tables[0]["terabytes"] / 2)


@pytest.mark.parametrize(
    ("selector", "options"), [("a3", {"ratio": 0.15}), ("probe", {"ratio": 0.05}), ("full_reuse", {})]
)
def test_a_tier_pays_off_only_above_its_break_even(selector, options):
    planned = deployment(selector=selector, options=options)
    gbs = by_tier(planned, MACHINE)["break_even"].iloc[0]
    tiers = {"above": {"gigabytes": 1, "gbs": gbs * 1.01}, "below": {"gigabytes": 1, "gbs": gbs / 1.01}}
    tiers["late"] = {"gbs": gbs * 1.01, "latency": 1e3}
    table = by_tier(planned.model_copy(update={"tiers": deployment(tiers=tiers).tiers}), MACHINE).set_index("tier")
    assert table["speed-up"]["above"] > 1 > table["speed-up"]["below"] > table["speed-up"]["late"]
    assert not math.isnan(table["ratio"]["above"])


def test_a_tier_pays_off_up_to_its_ratio():
    planned = deployment(selector="probe")
    table = by_tier(planned, MACHINE).set_index("tier")
    full = MACHINE.ttft(Shape.of(LLAMA), FULL, planned.tokens)
    for name, ratio in table["ratio"].dropna().items():
        largest, more = (deployment(selector="probe", options={"ratio": ratio + step}) for step in (0, 0.01))
        assert ttft(largest, MACHINE, {name: 1.0}) < full
        assert ttft(more, MACHINE, {name: 1.0}) >= full
    assert table["ratio"].dropna().is_monotonic_decreasing
    assert math.isnan(table["ratio"]["object store"])


def test_break_evens_are_those_of_each_ratio_and_length_alone():
    table = break_evens(deployment(selector="probe"), MACHINE, [0.05, 0.3], [8, 32])
    assert table["tokens"].tolist() == [4096, 16384] * 2
    for row in table.to_dict("records"):
        one = deployment(selector="probe", options={"ratio": row["ratio"]}, retrieved=row["tokens"] // 512)
        assert row["gbs"] == by_tier(one, MACHINE)["break_even"].iloc[0]
    assert table["gbs"].iloc[2] > table["gbs"].iloc[0]  # recomputing more leaves less time to load


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tiers": {"disk": {"gigabytes": 1, "gbs": 7.0}}}, "the last tier must hold every chunk"),
        ({"tiers": {}}, "the last tier must hold every chunk"),
        ({"selector": "full_prefill", "options": {}}, "reuses nothing"),
        ({"selector": "a4"}, "unknown selector 'a4'"),
        ({"options": {"ration": 0.1}}, "has no option ration"),
        ({"format": "fp4"}, "unknown store format 'fp4'"),
        ({"model": "no/model"}, "the shape of 'no/model' is not known"),
        ({"rate": 0}, "greater than 0"),
        ({"tiers": {"disk": {"gbs": 0.0}}}, "greater than 0"),
        ({"chunks": 5}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_planned_is_an_error(parameters, message):
    with pytest.raises(ValueError, match=message):
        deployment(**parameters)


def test_a_tier_that_was_not_measured_is_an_error():
    planned = deployment(tiers={"disk": {"gbs": "disk"}})
    with pytest.raises(ValueError, match="the record of made up has no tier 'disk': give gbs a number, or pinned"):
        by_tier(planned, MACHINE)


def test_the_figures_show_every_row():
    planned = deployment(zipf=0.8, selector="probe")
    growing = by_corpus(planned, MACHINE, [10**3, 10**6, 10**9])
    origin, times, gpus = over_corpus(growing, "made up").axes
    assert len(origin.collections) == 4
    assert len({to_hex(area.get_facecolor()[0]) for area in origin.collections}) == 4
    assert [list(line.get_ydata()) for line in times.lines] == [list(growing["ttft"]), list(growing["full_ttft"])]
    assert [list(line.get_ydata()) for line in gpus.lines] == [list(growing["gpus"]), list(growing["full_gpus"])]

    needed = break_evens(planned, MACHINE, [0.05, 0.3], [8, 32])
    (axes,) = break_even_over_length(needed, {"GPU": math.inf, "disk": 7.0}, "made up").axes
    lines = [list(line.get_ydata()) for line in axes.lines]
    assert lines == [list(needed["gbs"][:2]), list(needed["gbs"][2:]), [7.0, 7.0]]

    rows = pd.DataFrame(
        {"tier": ["", "cuda", "pinned"], "selector": ["full_prefill", "a3", "a3"], "measured": [3.0, 2.0, 1.0]}
    ).assign(predicted=[3.1, 2.2, 0.9])
    (axes,) = predicted_over_measured(rows, "made up").axes
    shown = [(*line.get_xdata(), *line.get_ydata()) for line in axes.lines if len(line.get_xdata()) == 1]
    assert sorted(shown) == [(1.0, 0.9), (2.0, 2.2), (3.0, 3.1)]
