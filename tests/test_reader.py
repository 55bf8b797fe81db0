"""Layers read by threads are those read one by one, and what goes wrong while reading is raised to who asks."""

from math import prod
from threading import Event

import pytest
import torch
from conftest import make_model, random_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkv import KVStore, Prompt, StoreError
from ragkv.quantize import CODECS, dequantize
from ragkv.reader import Reader
from ragkv.segments import SegmentInMemory
from ragkv.store import Layout
from ragkv.store.stored_segment import Packed
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


def one_by_one(segments, part):
    """Segment by segment, a part's layers."""
    return [torch.stack([segment.layer(i) for i in part]).flatten() for segment in segments]


def by_segment(segments, room, longest, part):
    """The same, of what a reader gives."""
    sizes = [prod(segment.shape) for segment in segments]
    rooms = room.split([longest * size for size in sizes])
    return [own[: len(part) * size] for own, size in zip(rooms, sizes, strict=True)]


def cut(layers, size):
    return [layers[i : i + size] for i in range(0, len(layers), size)]


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


@settings(max_examples=30)
@given(st.integers(1, LAYERS + 1), st.integers(1, 4), st.integers(0, LAYERS - 1), st.booleans())
def test_parts_are_the_layers_read_one_by_one(model, rng, tmp_path, monkeypatch, size, at_a_time, first, inference):
    """With and without PyTorch's inference mode, which prefills have."""
    monkeypatch.setattr("ragkv.reader.PARTS", at_a_time)
    with torch.inference_mode(inference):
        segments, _ = segments_of(model, rng, tmp_path)
        parts = cut(range(first, LAYERS), size)
        reader = Reader(segments, parts)
        for part in parts:
            found = by_segment(segments, reader.part(), len(parts[0]), part)
            assert all(map(torch.equal, found, one_by_one(segments, part)))


@pytest.mark.parametrize("format", CODECS)
def test_smaller_formats_are_read_as_they_are_stored(model, rng, tmp_path, format):
    memory, layout = InMemory.computed(model, Prompt([], [random_ids(rng, 7)], [9])), Layout.of(model, format)
    store = KVStore(tmp_path, format=format)
    memory.into(store, model)
    stored = store.open(layout, *memory.segments)
    packed, shape = Packed(stored), list(stored.shape)
    codes, (_, heads, tokens, head_dim) = CODECS[format], shape
    part = Reader([packed], [range(3, 5)]).part().split(prod(packed.shape))
    for index, read in zip((3, 4), part, strict=True):
        sizes = [len(read) - heads * (head_dim + tokens), heads * head_dim, heads * tokens]
        numbers, keys, values = read.split(sizes)
        numbers = numbers.view(codes.codes).view(2, heads, tokens, -1)
        scales = keys.view(torch.int8).view(heads, head_dim), values.view(torch.int8).view(heads, tokens)
        assert torch.equal(dequantize(numbers, *scales, format, layout.dtype), stored.layer(index))


def test_more_segments_than_threads(model, rng, tmp_path):
    segments, _ = segments_of(model, rng, tmp_path, lengths=range(1, 30))
    parts = cut(range(LAYERS), 4)
    reader = Reader(segments, parts)
    for part in parts:
        assert all(map(torch.equal, by_segment(segments, reader.part(), 4, part), one_by_one(segments, part)))


@settings(max_examples=30)
@given(size=st.integers(1, LAYERS), at_a_time=st.integers(1, 4))
def test_only_so_many_layers_are_in_memory_at_a_time(monkeypatch, size, at_a_time):
    monkeypatch.setattr("ragkv.reader.PARTS", at_a_time)
    segment, parts = Watched(LAYERS), cut(range(LAYERS), size)
    segment.may.set()
    reader = Reader([segment], parts)
    for number, part in enumerate(parts):
        assert max(segment.asked, default=0) < part.start + size * at_a_time, number
        reader.part()
    assert sorted(segment.asked) == list(range(LAYERS))  # each once


def test_what_is_still_being_read_has_to_be_waited_for():
    segment = Watched(4)
    reader = Reader([segment], [range(2), range(2, 4)])
    assert not reader.has()
    segment.may.set()
    assert torch.equal(reader.part(), torch.cat(one_by_one([segment], range(2))))


@pytest.mark.parametrize("size", [1, 2, LAYERS])
def test_a_damaged_file_is_an_error_for_the_layers_read_with_it(model, rng, tmp_path, size):
    segments, store = segments_of(model, rng, tmp_path)
    path, bad = segments[0].path, 4
    data, number = store.folder.files.cat_file(path), segments[0].layer(bad).numpy().tobytes()
    at = data.index(number)
    store.folder.files.pipe_file(path, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    parts = cut(range(LAYERS), size)
    reader = Reader(segments, parts)
    for part in parts:
        if bad in part:
            with pytest.raises(StoreError, match=rf"layer\.{bad:03d} does not match its checksum"):
                reader.part()
        else:
            found = by_segment(segments, reader.part(), size, part)
            assert all(map(torch.equal, found, one_by_one(segments, part)))
