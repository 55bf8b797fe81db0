"""The wheel works outside of a checkout, and `ragkv init` writes a folder to begin in."""

import os
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT, files

from ragkv.experiment.experiment import Experiment
from ragkv.starter import write_starter

ASK = """
from ragkv import answer
print(answer("Find VAR PIGA?", ["Late the cook wrote VAR PIGA 414."], "tiny-llama").text)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What a wheel of this checkout installs."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_has_all_of_the_package_and_nothing_else(installed):
    tracked = subprocess.run(["git", "ls-files", "ragkv"], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = {path for path in tracked.stdout.splitlines() if (ROOT / path).exists()}
    found = {path for path in files(installed) if not path.startswith(("ragkv/starter/", "ragkv-"))}
    assert expected <= found
    assert {path for path in found - expected if not (ROOT / path).exists()} == set()


def test_a_wheel_answers_and_begins_a_folder_away_from_the_checkout(installed, tmp_path):
    def python(*words):
        environment = os.environ | {"PYTHONPATH": str(installed)}
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert python("-c", ASK).strip() == "VAR PIGA 414"
    assert python("-m", "ragkv", "init", "mine").startswith("mine: profiles in params/")
    write_starter(tmp_path / "from checkout")
    assert files(tmp_path / "mine") == files(tmp_path / "from checkout")


def test_a_starters_profiles_can_be_run_there(tmp_path):
    write_starter(tmp_path)
    for profile in (ROOT / "params").glob("*.yaml"):
        assert Experiment.load(profile.stem, root=tmp_path).profile == Experiment.load(profile.stem, root=ROOT).profile
    with pytest.raises(ValueError, match="is not empty: give a new folder"):
        write_starter(tmp_path)
