"""After a fault, running the same again gives the results of an undisturbed run; a short form of `faults`."""

import os
import shutil
import tempfile
from pathlib import Path
from random import Random

import pytest
from faults import FAULTS, Subject


@pytest.fixture(scope="module")
def subject():
    """In a folder that other users can enter."""
    folder = Path(tempfile.mkdtemp(prefix="ragkv-faults-"))
    folder.chmod(0o755)
    yield Subject(folder)
    shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
@pytest.mark.parametrize("name", FAULTS)
def test_running_again_gives_the_undisturbed_results(subject, name):
    if name in ("broken_connections", "silent_servers"):
        pytest.importorskip("moto.server")
        pytest.importorskip("s3fs")
    cause, count, _ = FAULTS[name]
    if cause(subject, count, Random(name)) is None:
        pytest.skip("no file system can be mounted here")
