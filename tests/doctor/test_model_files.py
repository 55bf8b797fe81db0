"""What keeps a folder from being loaded as a model is said, and the model's own code never runs."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from ragkv.costs.shape import Shape
from ragkv.doctor import checks
from ragkv.doctor.model_files import OWN_CODE, folder_problems
from ragkv.models.load import model_source


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


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
    """Otherwise the two tests above would hold for any code."""
    AutoConfig.from_pretrained(with_own_code, trust_remote_code=True)
    (tmp_path / "the code ran").unlink()
