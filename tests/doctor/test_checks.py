"""The doctor finds what is broken, says what to do, and leaves nothing behind."""

import hashlib
from pathlib import Path

import pytest
import torch
from helpers import FAMILIES, make_model, random_prompt

from ragkv import KVStore, precompute
from ragkv.doctor import checks
from ragkv.doctor.checks import examine
from ragkv.models.load import embedded_models, model_source
from ragkv.tiny.sums import changed, write_sums
from ragkv.tiny.train import FAMILIES as TINY
from ragkv.tiny.train import save


def test_all_is_well_here(tmp_path):
    found = list(examine(str(tmp_path / "kv")))
    assert [check for check in found if check.state == "problem"] == []
    names = [check.name for check in found]
    assert len(set(names)) == len(names)
    machine = ["versions", "extras", "GPU", "triton", "flashinfer", *FAMILIES, "disk", "store"]
    assert set(names) == {*machine, *embedded_models()}
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_fails_is_a_problem_and_the_others_go_on(monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("no such luck\nand more")

    for name in ("gpu", "segments", "model_folder"):
        monkeypatch.setattr(checks, name, broken)
    found = {check.name: check for check in examine(str(tmp_path), tmp_path)}
    for name in ("GPU", "store", "model"):
        assert (found[name].state, found[name].detail) == ("problem", "RuntimeError: no such luck")
    assert "RuntimeError" not in found["disk"].detail  # whatever space is left on this machine


def test_a_family_that_differs_is_a_problem(monkeypatch):
    monkeypatch.setattr(checks, "logits_error", lambda model: float("nan"))
    assert checks.exactness("llama").state == "problem"
    monkeypatch.setattr(checks, "logits_error", lambda model: 0.0)
    monkeypatch.setattr(checks, "same_answer", lambda model: False)
    found = checks.exactness("llama")
    assert found.state == "problem"
    assert "transformers" in found.advice


@pytest.mark.parametrize(
    ("outcome", "state", "message"),
    [
        (1e-3, "ok", "its kernel compiles"),
        (0.5, "problem", "off by 5e-01"),
        (float("nan"), "problem", "off by nan"),
        (RuntimeError("nvcc not found"), "problem", "nvcc not found"),
        (ImportError("No module named 'triton'"), "warning", "No module named 'triton'"),
    ],
)
def test_a_kernel_that_is_wrong_or_does_not_compile(monkeypatch, outcome, state, message):
    def error(name):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(checks, "attention_error", error)
    found = checks.attention("triton")
    assert found.state == state
    assert message in found.detail
    assert bool(found.advice) == (state != "ok")


def test_flashinfer_may_be_missing_but_not_broken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for reason, state in (("ModuleNotFoundError: no flashinfer", "ok"), ("OSError: libcudart.so.12", "problem")):
        monkeypatch.setattr("ragkv.models.flashinfer.missing", lambda reason=reason: reason)
        assert checks.attention("flashinfer").state == state


def test_a_gpu_that_pytorch_does_not_see(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks.gpu().state == "ok"
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\n")
    listing.chmod(0o755)
    assert checks.gpu().state == "problem"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert checks.gpu().state == "ok"


def test_damaged_files_of_a_store_are_found(llama, rng, tmp_path):
    store = KVStore(str(tmp_path / "kv"))
    assert "nothing yet" in checks.segments(store.url).detail
    precompute(llama, [random_prompt(rng, chunks=(5,) * 20)], store)
    assert checks.segments(store.url).state == "ok"
    for key in list(store.keys()):
        path = Path(store.path(key))
        path.write_bytes(path.read_bytes()[:-1])
    found = checks.segments(store.url)
    assert found.state == "problem"
    assert found.detail.startswith("0 of ")
    assert "run precompute again" in found.advice


def test_embedded_models_are_as_they_were_shipped():
    assert {f"tiny-{family}" for family in TINY} == set(embedded_models())
    for name in embedded_models():
        folder = Path(model_source(name))
        listed = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
        files = [path for path in folder.iterdir() if path.name != "SHA256SUMS"]
        assert listed == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        assert checks.embedded(name).state == "ok"


def test_any_change_of_a_model_s_files_is_found(llama, tmp_path):
    save(make_model("llama"), tmp_path / "trained")
    assert changed(tmp_path / "trained") == []
    for path in sorted((tmp_path / "trained").iterdir()):
        before = path.read_bytes()
        path.unlink()
        assert changed(tmp_path / "trained") == [path.name]
        if path.name != "SHA256SUMS":
            path.write_bytes(bytes([before[0] ^ 1]) + before[1:])
            assert changed(tmp_path / "trained") == [path.name]
        path.write_bytes(before)
    assert changed(tmp_path / "trained") == []
    (tmp_path / "trained/config.json").write_text("{}")
    write_sums(tmp_path / "trained")
    assert changed(tmp_path / "trained") == []


def test_a_missing_embedded_model_is_a_problem():
    found = checks.embedded("tiny-gpt")
    assert (found.state, found.advice) == ("problem", "reinstall ragkv")
