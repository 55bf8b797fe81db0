"""Settings and fixtures of all tests; what they call themselves is in helpers.py, profiles.py and imports.py."""

import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton

from random import Random

import pytest
import torch
from helpers import FAMILIES, memory_store, shared_model
from hypothesis import HealthCheck, settings
from profiles import write_profile
from transformers import PreTrainedModel

from ragkv import KVStore, load_model

torch.set_num_threads(1)
settings.register_profile(
    "ragkv", database=None, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("ragkv")

# These take minutes. They start first, so that the other workers run everything else meanwhile.
LONG = ("test_slurm.py", "test_workflow.py", "test_workflow_changes.py", "test_load.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> PreTrainedModel:
    """A tiny random model of every family. Tests must not change it."""
    return shared_model(family)


@pytest.fixture
def llama() -> PreTrainedModel:
    """A model for tests in which the family does not matter. They must not change it."""
    return shared_model("llama")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> Random:
    """Random numbers that are the same on every run, and others in every test."""
    return Random(request.node.name)


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path) -> KVStore:
    """An empty store: once in a folder, once in memory."""
    return KVStore(tmp_path / "kv") if request.param == "folder" else memory_store()


@pytest.fixture(scope="module")
def tiny():
    """An embedded model and its tokenizer."""
    return load_model("tiny-llama", device="cpu")


@pytest.fixture
def ready(tmp_path, tiny):
    """An experiment whose prompts are chunked and precomputed, ready to be evaluated."""
    experiment = write_profile(tmp_path)
    experiment.chunk(tiny[1])
    experiment.precompute(tiny[0])
    return experiment
