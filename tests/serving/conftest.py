"""Fixtures of the serving tests. They need neither vLLM nor what other tests' settings import."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # there may be fewer cores than processes
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from pathlib import Path
from tempfile import mkdtemp
from threading import Thread
from time import sleep

import pytest
import torch

from ragkv import load_model
from ragkv.models.load import model_source
from ragkv.serving.settings import Settings
from ragkv.serving.worker import Worker

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_llama():
    return load_model("tiny-llama", device="cpu")


@pytest.fixture
def settings(tmp_path) -> Settings:
    address = Path(mkdtemp(prefix="ragkv-test-")) / "worker.sock"  # pytest's own folders are too long for a socket
    return Settings(
        model=str(model_source("tiny-llama")), store=str(tmp_path / "kv"), address=str(address), dtype="float32"
    )


@pytest.fixture
def worker(settings, tiny_llama) -> Worker:
    """A worker in a thread of this process, listening."""
    worker = Worker(*tiny_llama, settings)
    Thread(target=worker.run, daemon=True).start()
    while not Path(settings.address).exists():
        sleep(0.01)
    return worker
