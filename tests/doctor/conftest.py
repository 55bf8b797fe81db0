"""A model's folder for the doctor to look at."""

import pytest
from helpers import make_model

from ragkv import load_tokenizer


@pytest.fixture
def folder(tmp_path):
    """A complete model: several shards, and a tokenizer."""
    make_model("qwen3").save_pretrained(tmp_path / "model", max_shard_size="100KB")
    load_tokenizer("tiny-qwen").save_pretrained(tmp_path / "model")
    return tmp_path / "model"
