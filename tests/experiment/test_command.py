"""`ragkv calibrate`: the best options are told in a line and saved where profiles find them."""

import json

import pytest
from helpers import fuse, plain
from profiles import write_profile
from typer.testing import CliRunner

from ragkv.cli import app
from ragkv.contexts import find_context
from ragkv.experiment.calibration import OPTIONS, calibration_prompts
from ragkv.models.fingerprint import fingerprint


def invoke(*words):
    return CliRunner().invoke(app, list(words))


def test_a_profile_finds_what_was_calibrated(tmp_path, tiny):
    method = {"selector": "probe", "calibrated": True, "ratios": [0.1]}
    experiment = write_profile(tmp_path, methods=[method])
    result = invoke("calibrate", "tiny-llama", "--prompts", "1", "--length", "512", "--root", str(tmp_path))
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    saved = json.loads(experiment.calibration.read_text())
    options = ", ".join(f"{name} {saved['options'][name]:g}" for name in OPTIONS)
    assert line.startswith(f"tiny-llama: {options} is best, with a KL of ")
    assert f"saved to {experiment.calibration}, for methods with `calibrated: true`" in line
    default = {"first_layer": 0, "following": 0, "hops": 3, "threshold": 0.0}
    (compared,) = [row for row in saved["compared"] if default.items() <= row.items()]
    assert f"(default options: {compared['divergence']:.4f})" in line
    (selector,) = experiment.selectors(experiment.profile.methods[0], [0.1], fingerprint(tiny[0]))
    assert {name: getattr(selector, name) for name in OPTIONS} == saved["options"]


def test_the_probe_is_calibrated_behind_what_chunks_are_computed_behind(tmp_path, tiny):
    """The divergence of the default options is that of a prompt whose chunks were computed so by hand."""
    model, tokenizer = tiny
    out = tmp_path / "c.json"
    words = ("--prompts", "1", "--length", "512", "--context", "learned", "--behind-prefix", "--out", str(out))
    assert invoke("calibrate", "tiny-llama", *words).exit_code == 0
    saved = json.loads(out.read_text())
    context = find_context("learned", model)
    assert saved["behind"] == {"context": context.identity, "prefix": True}
    default = {"first_layer": 0, "following": 0, "hops": 3, "threshold": 0.0}
    (compared,) = [row for row in saved["compared"] if default.items() <= row.items()]

    (prompt,) = calibration_prompts("tiny-llama", tokenizer, 1, 512)
    full = plain(model, prompt)[0].double().log_softmax(-1)
    divergences = {}
    for name, behind in {"BOS": prompt, "both": prompt.behind_prefix().behind(context)}.items():
        fused = fuse(model, behind, "probe", ratio=0.02, **default).logits.double().log_softmax(-1)
        divergences[name] = (full.exp() * (full - fused)).sum().item()
    assert compared["divergence"] == pytest.approx(divergences["both"], rel=1e-3)
    assert compared["divergence"] != pytest.approx(divergences["BOS"], rel=0.01)


def test_a_context_that_does_not_exist_is_reported(tmp_path):
    words = ("--prompts", "1", "--length", "512", "--context", "mine.safetensors", "--out", str(tmp_path / "c.json"))
    result = invoke("calibrate", "tiny-llama", *words)
    assert result.exit_code == 2
    last_line = result.stderr.splitlines()[-1]  # the lines above it are of loading the model
    assert last_line == "error: there is no learned context mine.safetensors: train one with `ragkv context train`"


@pytest.mark.parametrize("length", [1, 64, 127])
def test_prompts_of_a_single_chunk_are_refused(tiny, length):
    with pytest.raises(ValueError, match=f"prompts of {length} tokens do not have two chunks of 64 tokens"):
        calibration_prompts("tiny-llama", tiny[1], 1, length)


def test_it_is_said_beforehand_where_nothing_could_be_saved(tmp_path):
    result = invoke("calibrate", "tiny-llama", "--root", str(tmp_path))
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: there is no folder {tmp_path / 'params'} to save to: give --root, or a file with --out\n"
    )
