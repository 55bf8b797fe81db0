"""The doctor finds what is broken, says what to do, and leaves nothing behind."""

import hashlib
import json
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from helpers import FAMILIES, make_model, random_prompt, relative_error
from transformers import AutoConfig
from typer.testing import CliRunner

from ragkv import KVStore, load_tokenizer, precompute
from ragkv.cli import app
from ragkv.costs.shape import Shape
from ragkv.doctor import checks, packages
from ragkv.doctor.checks import Check, examine
from ragkv.doctor.disk import free_bytes, speed
from ragkv.doctor.exactness import LOGITS, family_model, logits_error, same_answer
from ragkv.doctor.model_files import OWN_CODE, folder_problems
from ragkv.models.load import embedded_models, model_source
from ragkv.tiny.sums import changed, write_sums
from ragkv.tiny.train import FAMILIES as TINY
from ragkv.tiny.train import save


@pytest.fixture
def folder(tmp_path):
    """A complete model: several shards, and a tokenizer."""
    make_model("qwen3").save_pretrained(tmp_path / "model", max_shard_size="100KB")
    load_tokenizer("tiny-qwen").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def test_all_is_well_here(tmp_path):
    found = list(examine(str(tmp_path / "kv")))
    assert [check for check in found if check.state == "problem"] == []
    names = [check.name for check in found]
    assert len(set(names)) == len(names)
    assert {"versions", "extras", "GPU", "triton", "flashinfer", *FAMILIES, "disk", "store", *embedded_models()} == set(
        names
    )
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_fails_is_a_problem_and_the_others_go_on(monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("no such luck\nand more")

    for name in ("gpu", "segments", "model_folder"):
        monkeypatch.setattr(checks, name, broken)
    found = {check.name: check for check in examine(str(tmp_path), tmp_path)}
    for name in ("GPU", "store", "model"):
        assert (found[name].state, found[name].detail) == ("problem", "RuntimeError: no such luck")
    assert found["disk"].state == "ok"


def test_one_screen_and_an_exit_code(monkeypatch, folder):
    run = CliRunner().invoke
    fine = run(app, ["doctor", str(folder), "--store", "memory://doctor"])
    assert fine.exit_code == 0
    assert len(fine.output.splitlines()) <= 24
    for state, code in (("warning", 0), ("problem", 1)):
        one = Check("disk", state, "it is slow", "buy another")
        monkeypatch.setattr("ragkv.doctor.command.examine", lambda *_, one=one: [one, Check("GPU", "ok", "none")])
        done = run(app, ["doctor"])
        assert done.exit_code == code
        assert [line.split() for line in done.output.splitlines()] == [
            [state, "disk", "it", "is", "slow"], ["->", "buy", "another"], ["ok", "GPU", "none"],
        ]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_of_transformers_that_differs_is_seen(family):
    """Its layers give something else than their parts, as a version with other names or steps would."""
    model = family_model(family)
    assert logits_error(model) <= LOGITS
    assert same_answer(model)
    hook = model.model.layers[1].register_forward_hook(lambda module, args, output: -output)
    assert logits_error(model) > 0.1
    assert not same_answer(model)
    hook.remove()
    assert same_answer(model)


def test_a_family_that_differs_is_a_problem(monkeypatch):
    monkeypatch.setattr(checks, "logits_error", lambda model: float("nan"))
    assert checks.exactness("llama").state == "problem"
    monkeypatch.setattr(checks, "logits_error", lambda model: 0.0)
    monkeypatch.setattr(checks, "same_answer", lambda model: False)
    found = checks.exactness("llama")
    assert found.state == "problem"
    assert "transformers" in found.advice


def test_models_of_a_family_are_the_same_every_time_and_disturb_no_seed():
    torch.manual_seed(3)
    before = torch.rand(4)
    torch.manual_seed(3)
    first, second = family_model("qwen2"), family_model("qwen2")
    assert torch.equal(torch.rand(4), before)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert relative_error(one, other) == 0


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


@pytest.fixture
def installed(monkeypatch):
    """Say what ragkv requires, and which distributions are installed."""

    def version(name, versions):
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    def install(required, **versions):
        monkeypatch.setattr(packages, "requires", lambda name: required)
        monkeypatch.setattr(packages, "version", lambda name: version(name, versions))

    return install


@pytest.mark.parametrize(
    ("required", "detail"),
    [
        (["torch>=99"], "torch is 9.8.0, needs >=99"),
        (["no-such-package"], "no-such-package is missing"),
        (["torch>=99", "no-such-package"], "no-such-package is missing; torch is 9.8.0, needs >=99"),
        (["torch", "absent; extra == 'gpu'", "absent; python_version < '3'"], None),
        (["torch>=9.8"], None),
    ],
)
def test_versions_that_do_not_fit(installed, required, detail):
    installed(required, torch="9.8.0")
    found = checks.versions()
    assert (found.state, found.detail) == ("problem", detail) if detail else found.state == "ok"


@pytest.mark.parametrize("local", ["", "+cpu", "+cu130"])
def test_builds_of_a_version_are_that_version(monkeypatch, installed, local):
    """The module may name its build where the distribution does not, as PyPI's torch does, and the other way round."""
    for module, distribution in ((local, ""), ("", local), (local, local)):
        monkeypatch.setattr(torch, "__version__", f"9.8.0{module}")
        installed(["torch>=9.8,==9.8.0"], torch=f"9.8.0{distribution}")
        assert checks.versions().state == "ok"
        installed(["torch>=9.8.1"], torch=f"9.8.0{distribution}")
        assert checks.versions().detail == f"torch is 9.8.0{distribution}, needs >=9.8.1"


def test_what_is_required_here_is_installed():
    """With the versions that pip reports, whatever the build."""
    assert packages.missing() == packages.outdated() == []


def test_extras_that_are_there_and_those_that_are_not(installed):
    required = ["torch", "pandas>=2; extra == 'evaluation'", "bm25s; extra == 'rag'"]
    required += ["ragkv[evaluation,rag]; extra == 'notebooks'", "papermill; extra == 'notebooks'"]
    installed(required, torch="9.8.0", pandas="2.2", papermill="1.0")
    assert packages.missing("notebooks") == ["bm25s"]
    found = checks.extras()
    assert found.state == "ok"
    assert found.detail == "installed: evaluation, hub, s3, gpu, slurm; not installed: rag, notebooks"
    installed(required, pandas="1.5", bm25s="1.0")
    found = checks.extras()
    assert (found.state, found.detail) == ("problem", "pandas is 1.5, needs >=2")


def test_a_copy_that_is_not_installed_is_a_warning(monkeypatch):
    def requires(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "requires", requires)
    assert checks.versions().state == "warning"
    assert checks.extras().detail == "not checked: ragkv is not installed"


def test_a_disk_is_measured_where_the_store_will_lie(tmp_path):
    assert all(rate > 1e6 for rate in speed(str(tmp_path / "not" / "yet")))
    assert free_bytes(str(tmp_path / "not" / "yet")) == shutil.disk_usage(tmp_path).free
    assert all(rate > 1e6 for rate in speed("memory://disk"))
    assert list(tmp_path.iterdir()) == []
    assert fsspec.filesystem("memory").find("/disk") == []


def test_a_full_or_forgetful_disk_is_a_problem(monkeypatch, tmp_path):
    class Forgetful(MemoryFileSystem):
        protocol = "forgetful"

        def _open(self, path, mode="rb", **kwargs):
            file = super()._open(path, mode, **kwargs)
            if mode == "rb":
                file.getbuffer()[7] ^= 1
            return file

    fsspec.register_implementation("forgetful", Forgetful, clobber=True)
    found = checks.disk("forgetful://kv")
    assert found.state == "problem"
    assert "other bytes" in found.detail
    assert fsspec.filesystem("memory").find("/kv") == []

    monkeypatch.setattr(checks, "free_bytes", lambda url: 1e6)
    found = checks.disk(str(tmp_path))
    assert (found.state, "0.00 GB free" in found.detail) == ("warning", True)


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


def test_a_complete_model_is_fine(folder):
    assert len(shards(folder)) > 2
    found = checks.model_folder(folder)
    assert found.state == "ok"
    assert f"in {len(shards(folder))} files" in found.detail
    assert checks.model_folder(Path(model_source("tiny-llama"))).state == "ok"  # one file, no index


def without(name):
    return lambda folder: (folder / name).unlink()


def edited(name, **values):
    def edit(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


def cut(folder):
    path = shards(folder)[1]
    path.write_bytes(path.read_bytes()[:-100])


def exchanged(folder):
    first, second = shards(folder)[:2]
    first.write_bytes(second.read_bytes())


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (without("config.json"), ["has no config.json"]),
        (without("tokenizer.json"), ["the tokenizer cannot be loaded"]),
        (lambda folder: shards(folder)[1].unlink(), ["model-00002-of-", "is missing"]),
        (lambda folder: [path.unlink() for path in shards(folder)], ["model-00001-of-", "; model-00002-of-"]),
        (without("model.safetensors.index.json"), ["model.safetensors is missing"]),
        (edited("model.safetensors.index.json", weight_map=3), ["model.safetensors.index.json is damaged"]),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), ["index.json is damaged"]),
        (cut, ["model-00002-of-", "is damaged"]),
        (exchanged, ["model-00001-of-", "lacks ", " among them"]),
        (edited("config.json", model_type="gpt2"), ["architecture 'gpt2' is not supported"]),
        (edited("config.json", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), ["rotary"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["config.json: "]),
    ],
)
def test_what_a_model_s_folder_lacks_is_said(folder, damage, messages):
    damage(folder)
    problems = "; ".join(folder_problems(folder))
    assert all(message in problems for message in messages), problems
    found = checks.model_folder(folder)
    assert (found.state, found.detail) == ("problem", problems)
    assert str(folder) in found.advice


CODE = """
from pathlib import Path

Path({mark!r}).touch()
from transformers import PretrainedConfig, PreTrainedTokenizerFast


class OwnConfig(PretrainedConfig):
    model_type = "own"


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def with_own_code(folder, tmp_path, monkeypatch):
    """A model whose configuration and tokenizer are code in its folder: the code leaves a file when it runs.

    A question on the terminal, whether it may run, would be answered with yes.
    """
    mark = tmp_path / "the code ran"
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    edited("config.json", model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})(folder)
    tokenizer = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    edited("tokenizer_config.json", **tokenizer)(folder)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield folder
    assert not mark.exists()


def test_code_of_a_model_never_runs(with_own_code):
    found = checks.model_folder(with_own_code)
    assert found.state == "problem"
    assert f"config.json: {OWN_CODE}" in found.detail
    assert f"the tokenizer cannot be loaded: {OWN_CODE}" in found.detail
    assert found.advice == "use a model that transformers supports"


def test_planning_never_runs_code_of_a_model(with_own_code):
    with pytest.raises(ValueError, match="shape of"):
        Shape.of(str(with_own_code))


def test_that_code_would_run_if_it_were_asked_for(folder, with_own_code, tmp_path):
    """Else the two tests above would hold for any code."""
    AutoConfig.from_pretrained(with_own_code, trust_remote_code=True)
    (tmp_path / "the code ran").unlink()
