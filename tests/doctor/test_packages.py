"""What is required and what is installed, whatever build of a version it is."""

from importlib.metadata import PackageNotFoundError

import pytest
import torch

from ragkv.doctor import checks, packages


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
