"""What the options of ``python -m ragkv.bench`` mean, and which are refused instead of ignored."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ragkv.bench import command
from ragkv.bench.prefills import RATIOS, SELECTORS
from ragkv.bench.shapes import ShapeBench
from ragkv.bench.tiers import TIERS

app = typer.Typer()
app.command()(command.bench)


def run(*words):
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})


@pytest.fixture
def measured(monkeypatch):
    """The options with which shapes would be measured, on a machine that seems to have a GPU."""
    options = []
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "measure_shape", lambda bench, keep: options.append(bench))
    return options


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lengths", "8192", "--layers", "2"), "--lengths, --layers: use this only together with --shape"),
        (("--shape", "llama-3-8b", "--tokens", "9"), "--tokens: use this only without --shape"),
        (("--shape", "gpt-2"), "'gpt-2' is not one of llama-3-8b, mistral-7b"),
        (("--shape", "llama-3-8b", "--tiers", "cuda,nvme"), "'nvme' is not one of cuda, pinned, page cache, disk"),
        (("--shape", "llama-3-8b", "--format", "fp4"), "'fp4' is not one of model, fp8"),
        (("--shape", "llama-3-8b", "--lengths", "8k"), "'8k' is not a number of tokens"),
        (("--shape", "llama-3-8b", "--lengths", "0"), "'0' is not a number of tokens"),
        (("--shape", "llama-3-8b", "--batches", "1,many"), "--batches: 'many' is not a number of prompts"),
        (("--batches", "4"), "--batches: use this only together with --shape"),
        (("--selectors", "a3"), "--selectors: use this only together with --shape"),
        (("--shape", "llama-3-8b", "--selectors", "a3,random"), "'random' is not one of full_reuse, probe, a3"),
        (("--shape", "llama-3-8b", "--ratios", "0.02,15"), "--ratios: '15' is not a ratio above 0 and up to 1"),
        (("--shape", "llama-3-8b", "--ratios", "0"), "--ratios: '0' is not a ratio above 0 and up to 1"),
        (("--shape", "llama-3-8b", "--ratios", "few"), "--ratios: 'few' is not a ratio above 0 and up to 1"),
        (
            ("--shape", "llama-3-8b", "--batches", "4", "--ratios", "0.15,0.3"),
            "--batches: none of these selectors and ratios can be measured in batches: choose probe, a3 or epic, and a "
            "ratio of at most 0.05",
        ),
        (
            ("--shape", "llama-3-8b", "--batches", "4", "--selectors", "cacheblend,full_reuse"),
            "--batches: none of these selectors and ratios can be measured in batches",
        ),
    ],
)
def test_options_without_effect_or_meaning_are_refused(measured, words, message):
    done = run(*words)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert not measured


def test_a_shape_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    done = run("--shape", "llama-3-8b")
    assert done.exit_code == 2
    assert "--shape: this needs a GPU, and PyTorch sees none here" in " ".join(done.output.split())


def test_lists_are_separated_by_commas_or_repeated(measured):
    start = ("--shape", "qwen2.5-7b")
    values = {
        "--lengths": ("512", "1024"),
        "--tiers": ("cuda", "page cache"),
        "--selectors": ("probe", "a3"),
        "--ratios": ("0.02", "0.1"),
        "--batches": ("1", "4"),
    }
    together = [word for option, items in values.items() for word in (option, ",".join(items))]
    repeated = [word for option, items in values.items() for item in items for word in (option, item)]
    assert run(*start, *together).exit_code == 0
    assert run(*start, *repeated).exit_code == 0
    expected = ShapeBench(
        "qwen2.5-7b",
        lengths=(512, 1024),
        tiers=("cuda", "page cache"),
        selectors=("probe", "a3"),
        ratios=(0.02, 0.1),
        batches=(1, 4),
    )
    assert measured == [expected] * 2


def test_an_empty_list_of_tiers_measures_no_fused_prefills(measured):
    assert run("--shape", "llama-3-8b", "--tiers", "", "--batches", "4").exit_code == 0
    assert measured == [ShapeBench("llama-3-8b", tiers=(), batches=(4,))]


def test_what_is_not_given_has_a_default(measured):
    run("--shape", "llama-3-8b")
    run("--shape", "llama-3-8b", "--chunk-tokens", "64", "--repeats", "3", "--store", "x", "--format", "fp8")
    first, second = measured
    assert (first.lengths, first.tiers, first.format) == ((8192, 16384, 32768), TIERS, "model")
    assert (first.selectors, first.ratios) == (SELECTORS, RATIOS)
    assert (first.store, first.layers, first.chunk_tokens, first.repeats, first.batches) == (None, None, 512, 20, ())
    assert second == ShapeBench("llama-3-8b", store=Path("x"), format="fp8", chunk_tokens=64, repeats=3)


def test_a_record_has_its_tables_and_says_what_was_measured(tmp_path):
    out = tmp_path / "bench.json"
    done = run("--tokens", "64", "--repeats", "2", "--chunk-tokens", "32", "--ratio", "0.5", "--out", str(out))
    assert done.exit_code == 0, done.output
    record = json.loads(out.read_text())
    assert list(record["prefill"]) == ["transformers", "full_prefill", "full_reuse", "epic", "cacheblend", "a3"]
    assert list(record["precompute"]) == ["plain forward", "precompute", "precompute behind 16 learned tokens"]
    assert list(record["storing"]) == ["one by one", "32 in a pass"]
    assert record["chunking"]["tokenisation"]["speed-up"] == 1
    for row in record["prefill"].values():
        assert row["p20"] <= row["p50"] <= row["p80"]
        assert row["speed-up"] == pytest.approx(record["prefill"]["transformers"]["p50"] / row["p50"])
    expected = {"model": "tiny-llama", "tokens": "64", "repeats": "2", "chunk_tokens": "32", "ratio": "0.5"}
    assert expected.items() <= record["parameters"].items()
