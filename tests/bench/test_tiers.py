"""From every tier of files come the same segments, and making a tier ready leaves its files whole."""

from pathlib import Path

import pytest
import torch
from helpers import random_prompt

from ragkv import KVStore, fused_prefill
from ragkv.bench.tiers import tier
from ragkv.loading.memory import InMemory
from ragkv.selectors import get_selector
from ragkv.store import Layout


@pytest.mark.parametrize("name", ["page cache", "disk"])
def test_files_give_what_memory_holds(model, rng, tmp_path, name):
    prompt, store = random_prompt(rng), KVStore(tmp_path)
    memory, layout = InMemory.computed(model, prompt), Layout.of(model)
    memory.into(store, model)
    paths = [Path(store.path(layout.key(segment))) for segment in memory.segments]
    before = [path.read_bytes() for path in paths]
    segments, prepare = tier(name, memory, store, model)
    for _ in range(2):
        prepare()
        assert [path.read_bytes() for path in paths] == before
        for segment, states in memory.segments.items():
            found = segments.open(layout, segment)
            assert torch.equal(found.surprisal(), states.scores)
            assert all(torch.equal(found.layer(i), states.layers[i]) for i in range(layout.layers))
    there, here = (fused_prefill(model, prompt, where, get_selector("a3", ratio=0.3)) for where in (segments, memory))
    assert torch.equal(there.logits, here.logits)


@pytest.mark.parametrize("name", ["nvme", "", "Disk"])
def test_an_unknown_tier_names_those_that_exist(llama, rng, tmp_path, name):
    memory = InMemory.computed(llama, random_prompt(rng))
    with pytest.raises(ValueError, match=f"unknown tier '{name}': choose among cuda, pinned, page cache, disk"):
        tier(name, memory, KVStore(tmp_path), llama)
    assert not list(tmp_path.iterdir())


def test_a_tier_of_files_needs_the_files(llama, rng, tmp_path):
    """Before anything is timed: a store that lacks them is no tier."""
    memory = InMemory.computed(llama, random_prompt(rng))
    with pytest.raises(FileNotFoundError):
        tier("page cache", memory, KVStore(tmp_path), llama)
    _, prepare = tier("disk", memory, KVStore(tmp_path), llama)
    with pytest.raises(FileNotFoundError):
        prepare()
