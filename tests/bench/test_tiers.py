"""Every tier of files gives the same segments, and its files are whole and in the page cache, or out of it."""

import ctypes
import mmap
import os
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
def test_files_hold_the_same_segments_as_memory(model, rng, tmp_path, name):
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
            stored = segments.open(layout, segment)
            assert torch.equal(stored.surprisal(), states.scores)
            assert all(torch.equal(stored.layer(i), states.layers[i]) for i in range(layout.layers))
    a3 = get_selector("a3", ratio=0.3)
    from_files, from_memory = (fused_prefill(model, prompt, source, a3) for source in (segments, memory))
    assert torch.equal(from_files.logits, from_memory.logits)


def share_in_memory(path):
    """The share of a file's pages that are in the page cache, as mincore says."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        status = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), pages
        )
        del start  # or the file stays mapped
        assert status == 0, os.strerror(ctypes.get_errno())
        return sum(page & 1 for page in pages) / len(pages)


def can_drop_files(folder):
    """Whether this file system's files can leave the memory: those of a RAM disk cannot."""
    path = folder / "probe"
    path.write_bytes(bytes(2**16))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return share_in_memory(path) == 0


def test_the_page_cache_holds_all_or_nothing_of_the_files(llama, rng, tmp_path):
    if not can_drop_files(tmp_path):
        pytest.skip("files cannot be dropped from memory on this file system")
    prompt, store = random_prompt(rng, chunks=(200, 200)), KVStore(tmp_path)
    memory, layout = InMemory.computed(llama, prompt), Layout.of(llama)
    memory.into(store, llama)
    paths = [store.path(layout.key(segment)) for segment in memory.segments]
    _, drop = tier("disk", memory, store, llama)
    for _ in range(2):
        drop()
        assert [share_in_memory(path) for path in paths] == [0] * len(paths)
        tier("page cache", memory, store, llama)
        assert [share_in_memory(path) for path in paths] == [1] * len(paths)


@pytest.mark.parametrize("name", ["nvme", "", "Disk"])
def test_an_unknown_tier_names_those_that_exist(llama, rng, tmp_path, name):
    memory = InMemory.computed(llama, random_prompt(rng))
    with pytest.raises(ValueError, match=f"unknown tier '{name}': choose among cuda, pinned, page cache, disk"):
        tier(name, memory, KVStore(tmp_path), llama)
    assert not list(tmp_path.iterdir())


def test_a_tier_of_files_needs_the_files(llama, rng, tmp_path):
    """A store without them is an error before anything is timed."""
    memory = InMemory.computed(llama, random_prompt(rng))
    with pytest.raises(FileNotFoundError):
        tier("page cache", memory, KVStore(tmp_path), llama)
    _, prepare = tier("disk", memory, KVStore(tmp_path), llama)
    with pytest.raises(FileNotFoundError):
        prepare()
