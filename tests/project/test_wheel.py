"""The wheel works outside of a checkout, `ragkv init` writes a folder to begin in, and a notebook installs it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT, files

from ragkv.experiment.experiment import Experiment
from ragkv.starter import write_starter

ASK = """
from ragkv import answer
print(answer("Find VAR PIGA?", ["Late the cook wrote VAR PIGA 414."], "tiny-llama").text)
"""


NOTEBOOK = "11_rag.ipynb"
RUN = """
import nbclient, nbformat, sys
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.execute(notebook, timeout=600)
nbformat.write(notebook, sys.argv[1])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """What it installs."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


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


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The Python of a new environment, and its variables: it has all packages that are installed here except ragkv."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", with_pip=True, symlinks=True)
    (folder / "packages").mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith("ragkv"):
            (folder / "packages" / package.name).symlink_to(package)
    paths = [Path(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = [folder / "packages", *(path for path in paths if not (path / "ragkv").exists())]
    variables = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PIP_NO_INDEX": "1"}
    return folder / "venv/bin/python", os.environ | variables


def run_cells(cells: list, path: Path, bare) -> subprocess.CompletedProcess:
    """Run some cells as a notebook at this path."""
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    python, environment = bare
    command = [python, "-c", RUN, path.name]
    return subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True, check=False)


def test_a_notebook_installs_the_wheel_beside_it(wheel, bare, tmp_path):
    """As in Colab, where ragkv is not installed. Without a wheel, the notebook says how to make one."""
    notebook = nbformat.read(ROOT / "notebooks" / NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    answered = next(number for number, cell in enumerate(cells) if "rag.ask" in cell.source)
    done = run_cells(cells[:1], tmp_path / NOTEBOOK, bare)
    assert "ragkv is not installed, and there is no ragkv-*.whl beside this notebook" in done.stderr
    shutil.copy(wheel, tmp_path)
    done = run_cells(cells[: answered + 1], tmp_path / NOTEBOOK, bare)
    assert done.returncode == 0, done.stderr
    printed = nbformat.read(tmp_path / NOTEBOOK, as_version=4).cells[answered].outputs
    text = "".join(output.text for output in printed if output.get("name") == "stdout")
    assert text == cells[answered].outputs[0].text
