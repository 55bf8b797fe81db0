"""Settings of all tests, and their fixtures."""

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

LONG = ("test_slurm.py", "test_workflow.py", "test_load.py")  # minutes: other tests run beside them, not before them


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> PreTrainedModel:
    """A tiny random model of each family; not to be changed."""
    return shared_model(family)


@pytest.fixture
def llama() -> PreTrainedModel:
    """One family where the family does not matter; not to be changed."""
    return shared_model("llama")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> Random:
    return Random(request.node.name)


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path) -> KVStore:
    """An empty store, in a folder and in memory."""
    return KVStore(tmp_path / "kv") if request.param == "folder" else memory_store()


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny-llama", device="cpu")


@pytest.fixture
def ready(tmp_path, tiny):
    """An experiment whose prompts are chunked and precomputed."""
    experiment = write_profile(tmp_path)
    experiment.chunk(tiny[1])
    experiment.precompute(tiny[0])
    return experiment
