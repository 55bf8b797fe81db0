"""What a bench of a shape records, on a small model and the CPU; only the GPU's ceilings and kernels are made up."""

import json
from copy import deepcopy

import pandas as pd
import pytest

from ragkv.bench import shapes
from ragkv.bench.prefills import methods
from ragkv.bench.shapes import ShapeBench, measure_shape
from ragkv.costs.records import own_rows
from ragkv.costs.roofline import Machine
from ragkv.costs.shape import Shape

CEILINGS = {"tflops": 1.0, "pinned_gbs": 10.0, "memory_gbs": 100.0}


@pytest.fixture
def on_the_cpu(monkeypatch, llama):
    monkeypatch.setattr(shapes, "random_model", lambda shape, positions, layers: llama)
    monkeypatch.setattr(shapes, "ceilings", lambda device: CEILINGS)
    monkeypatch.setattr(shapes, "attention_rows", lambda config, tokens: pd.DataFrame([{"tokens": tokens, "ms": 1.0}]))


@pytest.mark.usefixtures("on_the_cpu")
def test_a_record_is_kept_after_every_step_and_has_all_of_them(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "LONGEST_FROM", {"page cache": 150})
    options = ShapeBench(
        "llama-3-8b",
        (200, 150),
        ("page cache", "disk"),
        store=tmp_path,
        layers=3,
        chunk_tokens=64,
        repeats=2,
        batches=(3,),
    )
    kept = []
    measure_shape(options, lambda record: kept.append(deepcopy(record)))
    steps = [{"rows"}, set(), {"decoding"}, {"precompute"}, {"attention"}, {"store"}, {"batches"}]
    names = [set(record) for record in kept]
    assert [after - before for before, after in zip([names[0] - {"rows"}, *names], names, strict=False)] == steps
    record = json.loads(json.dumps(kept[-1]))  # as it comes back from its file
    assert list(tmp_path.iterdir()) == []  # its temporary stores are gone

    assert record["parameters"]["shape"] == "llama-3-8b"
    assert record["parameters"]["lengths"] == "(200, 150)"
    assert record["ceilings"] == CEILINGS
    rows = pd.DataFrame(record["rows"])
    measured = methods(llama.config.num_hidden_layers)
    assert rows["tokens"].value_counts().to_dict() == {200: 2 + len(measured), 150: 2 + 2 * len(measured)}
    assert rows[rows["tokens"] == 200]["tier"].unique().tolist() == ["", "disk"]  # too long for the page cache
    assert set(own_rows(record)["selector"]) == {"full_prefill", *(name for name, _ in measured)}
    machine = Machine("made up", CEILINGS["tflops"], CEILINGS["memory_gbs"])
    weights = 1e3 * machine.moving(2 * Shape.of_config(llama.config).weights)
    decoding = record["decoding"]
    assert (decoding["tokens"], decoding["weights"]) == (200, pytest.approx(weights))
    assert decoding["ratio"] == pytest.approx(decoding["tpot"] / decoding["weights"])
    assert [row["tokens"] for row in record["attention"]] == [200, 150]
    assert [row["what"] for row in record["store"]] == ["write", "plain read", "check", "read"]
    batches = pd.DataFrame(record["batches"])
    assert batches["prompts"].tolist() == [1, 3] * (len(batches) // 2)
    assert set(batches["selector"]) == {"probe", "a3", "epic"}
    assert set(batches["ratio"]) == {0.02, 0.05}
    assert (batches["tokens"] == 200).all()
    assert batches["prompts_per_second"].tolist() == pytest.approx((1e3 * batches["prompts"] / batches["p50"]).tolist())
    assert batches["reached"].tolist() == pytest.approx((batches["limit"] / batches["p50"]).tolist())
    separately = 3 * batches["limit"].iloc[::2].to_numpy()
    assert (batches["limit"].iloc[1::2].to_numpy() <= separately * (1 + 1e-9)).all()
    one_at_a_time = batches["prompts_per_second"].iloc[::2].repeat(2).to_numpy()
    assert batches["speed-up"].tolist() == pytest.approx((batches["prompts_per_second"] / one_at_a_time).tolist())


@pytest.mark.usefixtures("on_the_cpu")
def test_selectors_and_ratios_limit_prefills_and_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "LONGEST_OFTEN", 120)
    options = ShapeBench(
        "llama-3-8b",
        (150,),
        ("disk",),
        selectors=("full_reuse", "epic", "a3"),
        ratios=(0.05, 0.15),
        store=tmp_path,
        chunk_tokens=64,
        repeats=2,
        batches=(2,),
    )
    kept = []
    measure_shape(options, kept.append)
    record = json.loads(json.dumps(kept[-1]))
    rows = pd.DataFrame(record["rows"])
    fused = rows[rows["tier"] == "disk"]
    expected = [("full_reuse", 0.0)] + [(name, ratio) for name in ("a3", "a3", "epic") for ratio in (0.05, 0.15)]
    assert sorted(zip(fused["selector"], fused["ratio"], strict=True)) == sorted(expected)
    batches = pd.DataFrame(record["batches"])
    assert batches[["selector", "ratio", "prompts"]].values.tolist() == [
        [name, 0.05, count] for name in ("a3", "epic") for count in (1, 2)
    ]
    assert "store" not in record  # the prompt is too long for that
    assert record["parameters"]["selectors"] == "('full_reuse', 'epic', 'a3')"
    assert record["parameters"]["ratios"] == "(0.05, 0.15)"


@pytest.mark.usefixtures("on_the_cpu")
def test_without_tiers_of_files_the_store_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "LONGEST_OFTEN", 100)
    kept = []
    options = ShapeBench("llama-3-8b", (120,), (), store=tmp_path, chunk_tokens=64, repeats=2, batches=(2,))
    measure_shape(options, kept.append)
    assert [row["selector"] for row in kept[-1]["rows"]] == ["full_prefill", "transformers"]
    assert {"decoding", "precompute", "batches"} <= set(kept[-1])
    assert not {"attention", "store"} & set(kept[-1])  # and no length is short enough to measure attention at
