"""The run under load, for seconds: it ends without an error, and what it would not let pass."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
from helpers import ROOT

from ragkv import KVStore, load_model, precompute
from ragkv.store import Layout

SCRIPT = ROOT / "workflow" / "load.py"


@pytest.fixture(scope="module")
def load():
    spec = importlib.util.spec_from_file_location("load", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model():
    return load_model("tiny-llama", device="cpu")[0]


def test_writers_and_readers_over_one_store(tmp_path):
    command = [sys.executable, SCRIPT, "--minutes", "0.05", "--store", tmp_path / "kv", "--out", tmp_path / "load.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "load.json").read_text())
    files = list((tmp_path / "kv").glob("*/*"))
    assert found["segments checked"] == len(files) > 0
    assert all(safetensors.torch.load_file(file) for file in files)  # nothing else is left there
    assert [run["kind"] for run in found["memory"]].count("precompute") == 2
    assert found["two of each"]["precompute"]["prompts"] > 0


def test_a_damaged_segment_is_found(load, model, tmp_path):
    store = KVStore(tmp_path)
    precompute(model, [load.prompt(0, model.config.vocab_size)], store)
    assert load.check(model, store, []) == {"segments checked": load.CHUNKS_OF_A_PROMPT, "answers compared": 0}
    path = Path(store.path(store.keys()[0]))
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(RuntimeError, match="1 of 4 segments are damaged"):
        load.check(model, store, [])


def test_another_answer_is_found(load, model):
    asked, store = load.prompt(0, model.config.vocab_size), KVStore("memory://load-test")
    precompute(model, [asked], store)
    right = load.answer(model, asked, store)
    assert load.check(model, store, [{0: right}, {0: right}])["answers compared"] == 2
    with pytest.raises(RuntimeError, match="prompt 0 was answered otherwise"):
        load.check(model, store, [{0: right}, {0: ([*right[0], 9], right[1])}])


def test_prompts_share_chunks(load, model):
    prompts = [load.prompt(number, model.config.vocab_size) for number in range(load.PROMPTS)]
    keys = {Layout.of(model).key(segment) for prompt in prompts for segment in prompt.segments(None)}
    assert len(keys) <= load.CHUNKS < sum(len(prompt.chunks) for prompt in prompts)
