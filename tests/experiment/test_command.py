"""`ragkv calibrate`: the best options are told in a line and saved where profiles find them."""

import json

import pytest
from profiles import write_profile
from typer.testing import CliRunner

from ragkv.cli import app
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
