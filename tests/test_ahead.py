"""Layers read ahead by threads are those read one by one, and what goes wrong while reading is raised to who asks."""

from threading import Event

import pytest
import torch
from conftest import make_model, random_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkv import KVStore, Prompt, StoreError
from ragkv.ahead import Reader
from ragkv.segments import SegmentInMemory
from ragkv.store import Layout
from ragkv.tiers import InMemory

LAYERS = 9


@pytest.fixture(scope="module")
def model():
    return make_model("llama", num_hidden_layers=LAYERS)


def segments_of(model, rng, folder, lengths=(5, 1, 30)):
    """Some in memory, the others in files; and the store of the latter."""
    memory = InMemory.computed(model, Prompt([], [random_ids(rng, length) for length in lengths], [9]))
    store, layout = KVStore(folder), Layout.of(model)
    memory.into(store, model)
    return [memory.segments[s] if i % 2 else store.open(layout, s) for i, s in enumerate(memory.segments)], store


def one_by_one(segments, index):
    return torch.cat([segment.layer(index).flatten() for segment in segments])


class Watched:
    """A segment that notes which layers it is asked for, and gives none before it may."""

    def __init__(self, layers):
        self._segment = SegmentInMemory(torch.rand(layers, 2, 2, 3, 4), torch.zeros(3))
        self.shape, self.dtype, self.layer = self._segment.shape, self._segment.dtype, self._segment.layer
        self.asked, self.may = [], Event()

    def fill(self, first, rooms):
        self.asked.extend(range(first, first + len(rooms)))
        self.may.wait()
        self._segment.fill(first, rooms)


@pytest.fixture
def sizes(monkeypatch):
    """Sets how many layers are read at once, and how many blocks of them at a time."""

    def set_sizes(block, blocks):
        monkeypatch.setattr("ragkv.ahead.BLOCK", block)
        monkeypatch.setattr("ragkv.ahead.BLOCKS", blocks)

    return set_sizes


@settings(max_examples=30)
@given(st.integers(1, LAYERS + 1), st.integers(1, 4), st.integers(0, LAYERS - 1), st.booleans())
def test_layers_are_those_read_one_by_one(model, rng, tmp_path, sizes, block, blocks, first, inference):
    """With and without PyTorch's inference mode, which prefills have."""
    sizes(block, blocks)
    with torch.inference_mode(inference):
        segments, _ = segments_of(model, rng, tmp_path)
        reader = Reader(segments, range(first, LAYERS))
        for index in range(first, LAYERS):
            assert torch.equal(reader.layer(index), one_by_one(segments, index))


def test_more_segments_than_threads(model, rng, tmp_path):
    segments, _ = segments_of(model, rng, tmp_path, lengths=range(1, 30))
    reader = Reader(segments, range(LAYERS))
    assert all(torch.equal(reader.layer(i), one_by_one(segments, i)) for i in range(LAYERS))


@settings(max_examples=30)
@given(block=st.integers(1, LAYERS), blocks=st.integers(1, 4))
def test_only_so_many_layers_are_in_memory_at_a_time(sizes, block, blocks):
    sizes(block, blocks)
    segment = Watched(LAYERS)
    segment.may.set()
    reader = Reader([segment], range(LAYERS))
    for index in range(LAYERS):
        assert max(segment.asked, default=0) < index + block * blocks
        reader.layer(index)
    assert sorted(segment.asked) == list(range(LAYERS))  # each once


def test_what_is_still_being_read_has_to_be_waited_for(sizes):
    sizes(2, 1)
    segment = Watched(4)
    reader = Reader([segment], range(4))
    assert not reader.has(0)
    segment.may.set()
    assert torch.equal(reader.layer(0), one_by_one([segment], 0))
    assert reader.has(1)  # of the same block


@pytest.mark.parametrize("block", [1, 2, LAYERS])
def test_a_damaged_file_is_an_error_for_the_layers_read_with_it(model, rng, tmp_path, sizes, block):
    sizes(block, 2)
    segments, store = segments_of(model, rng, tmp_path)
    path, bad = segments[0].path, 4
    data, number = store.folder.files.cat_file(path), segments[0].layer(bad).numpy().tobytes()
    at = data.index(number)
    store.folder.files.pipe_file(path, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    reader = Reader(segments, range(LAYERS))
    for index in range(LAYERS):
        if index // block == bad // block:
            with pytest.raises(StoreError, match=rf"layer\.{bad:03d} does not match its checksum"):
                reader.layer(index)
        else:
            assert torch.equal(reader.layer(index), one_by_one(segments, index))
