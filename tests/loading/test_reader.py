"""Layers read by threads or processes are those read one by one; what goes wrong is raised to who asks."""

import gc
from functools import partial
from math import prod
from signal import SIGCONT, SIGSTOP
from threading import Event
from types import SimpleNamespace

import pytest
import torch
from helpers import make_model, random_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkv import KVStore, Prompt, StoreError
from ragkv.loading.memory import InMemory
from ragkv.loading.processes import ReadProcesses
from ragkv.loading.readers import ProcessReader, ThreadReader
from ragkv.loading.segments import SegmentInMemory
from ragkv.store import Layout
from ragkv.store.quantize import CODECS, FORMATS, dequantize
from ragkv.store.stored_segment import Packed

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
    numbers, sizes = room.view(segments[0].dtype), [prod(segment.shape) for segment in segments]
    rooms = numbers.split([longest * size for size in sizes])
    return [own[: len(part) * size] for own, size in zip(rooms, sizes, strict=True)]


def cut(layers, size):
    return [layers[i : i + size] for i in range(0, len(layers), size)]


class Watched:
    """A segment that notes which layers it is asked for, and gives none before it may."""

    def __init__(self, layers):
        self._segment = SegmentInMemory(torch.rand(layers, 2, 2, 3, 4), torch.zeros(3))
        self.layer, self.layer_bytes = self._segment.layer, self._segment.layer_bytes
        self.asked, self.may = [], Event()

    def fill(self, first, rooms):
        self.asked.extend(range(first, first + len(rooms)))
        self.may.wait()
        self._segment.fill(first, rooms)

    def share(self, index, room):
        self.fill(index, [room])


@pytest.fixture(scope="module")
def processes():
    shared = ReadProcesses()
    shared.count = 3  # on any machine
    return shared


@pytest.fixture(params=[ThreadReader, ProcessReader])
def reader_of(request, processes):
    """Makes a reader of one kind."""
    return request.param if request.param is ThreadReader else partial(ProcessReader, processes=processes)


def read(reader):
    """Its next part."""
    reader.part(room := torch.zeros(reader.size, dtype=torch.uint8))
    return room


def gives(reader, segments, longest, part):
    """Whether the next part has these layers of the segments."""
    return all(map(torch.equal, by_segment(segments, read(reader), longest, part), one_by_one(segments, part)))


@settings(max_examples=30)
@given(st.integers(1, LAYERS + 1), st.integers(1, 4), st.integers(0, LAYERS - 1), st.booleans(), st.booleans())
def test_parts_are_the_layers_read_one_by_one(
    model, rng, tmp_path, monkeypatch, reader_of, size, at_a_time, first, inference, large
):
    """With and without PyTorch's inference mode, which prefills have; also where few parts fit."""
    monkeypatch.setattr("ragkv.loading.readers.PARTS", at_a_time)
    monkeypatch.setattr("ragkv.loading.readers.ROOM", 1 if large else 1 << 32)
    with torch.inference_mode(inference):
        segments, _ = segments_of(model, rng, tmp_path)
        parts = cut(range(first, LAYERS), size)
        reader = reader_of(segments, parts)
        for part in parts:
            assert gives(reader, segments, len(parts[0]), part)


@pytest.mark.parametrize("format", CODECS)
def test_smaller_formats_are_read_as_they_are_stored(model, rng, tmp_path, reader_of, format):
    memory, layout = InMemory.computed(model, Prompt([], [random_ids(rng, 7)], [9])), Layout.of(model, format)
    store = KVStore(tmp_path, format=format)
    memory.into(store, model)
    stored = store.open(layout, *memory.segments)
    packed, shape = Packed(stored), list(stored.shape)
    codes, (_, heads, tokens, head_dim) = CODECS[format], shape
    part = read(reader_of([packed], [range(3, 5)])).split(packed.layer_bytes)
    for index, layer in zip((3, 4), part, strict=True):
        sizes = [len(layer) - heads * (head_dim + tokens), heads * head_dim, heads * tokens]
        numbers, keys, values = layer.split(sizes)
        numbers = numbers.view(codes.codes).view(2, heads, tokens, -1)
        scales = keys.view(torch.int8).view(heads, head_dim), values.view(torch.int8).view(heads, tokens)
        assert torch.equal(dequantize(numbers, *scales, format, layout.dtype), stored.layer(index))


@pytest.mark.parametrize("format", FORMATS)
def test_processes_leave_to_this_one_what_does_not_lie_in_a_local_file(model, rng, processes, format):
    store, layout = KVStore("memory://reader", format=format), Layout.of(model, format)
    memory = InMemory.computed(model, Prompt([], [random_ids(rng, 7)], [9]))
    memory.into(store, model)
    segments = [store.open(layout, *memory.segments)]
    assert gives(ProcessReader(segments, [range(2, 5)], processes), segments, 3, range(2, 5))


def test_more_segments_than_threads(model, rng, tmp_path, reader_of):
    segments, _ = segments_of(model, rng, tmp_path, lengths=range(1, 30))
    parts = cut(range(LAYERS), 4)
    reader = reader_of(segments, parts)
    for part in parts:
        assert gives(reader, segments, 4, part)


@settings(max_examples=30)
@given(size=st.integers(1, LAYERS), at_a_time=st.integers(1, 4))
def test_only_so_many_layers_are_in_memory_at_a_time(monkeypatch, reader_of, size, at_a_time):
    monkeypatch.setattr("ragkv.loading.readers.PARTS", at_a_time)
    segment, parts = Watched(LAYERS), cut(range(LAYERS), size)
    segment.may.set()
    reader = reader_of([segment], parts)
    for number, part in enumerate(parts):
        assert max(segment.asked, default=0) < part.start + size * at_a_time, number
        read(reader)
    assert sorted(segment.asked) == list(range(LAYERS))  # each once


def test_what_is_still_being_read_has_to_be_waited_for():
    segment = Watched(4)
    reader = ThreadReader([segment], [range(2), range(2, 4)])
    assert not reader.has()
    segment.may.set()
    assert torch.equal(read(reader).view(torch.float32), torch.cat(one_by_one([segment], range(2))))


def test_what_processes_still_read_has_to_be_waited_for(model, rng, tmp_path, processes):
    segments, _ = segments_of(model, rng, tmp_path)
    processes.room(1)
    for process in processes._running:
        process.send_signal(SIGSTOP)
    reader = ProcessReader(segments, [range(LAYERS)], processes)
    assert not reader.has()
    for process in processes._running:
        process.send_signal(SIGCONT)
    while not reader.has():
        pass
    assert gives(reader, segments, LAYERS, range(LAYERS))


def test_processes_say_whether_what_they_read_is_whole(model, rng, tmp_path, processes):
    """And read it themselves: nothing else fills the room here."""
    segments, _ = segments_of(model, rng, tmp_path, lengths=(3000,))  # a layer is several blocks
    piece = segments[0].piece(3)
    room = processes.room(3 * piece.size)
    room.zero_()
    whole = processes.ask([(piece, piece.size), (segments[0].piece(4), 0)])
    damaged = [processes.ask([(wrong, 2 * piece.size)]) for wrong in (piece._replace(salt=""), piece._replace(start=0))]
    gone = processes.ask([(piece._replace(path=str(tmp_path / "gone")), 2 * piece.size)])
    short = processes.ask([(piece._replace(size=1 << 30), 2 * piece.size)])
    assert processes.whole(whole)
    both = torch.cat([segments[0].layer(i).flatten() for i in (4, 3)])
    assert torch.equal(room[: 2 * piece.size].view(torch.float32), both)
    assert not any(map(processes.whole, (*damaged, gone, short)))


def test_processes_that_are_ended_are_missed_by_nobody(model, rng, tmp_path, processes):
    """Neither by the reader that waits for them, nor by the next."""
    segments, _ = segments_of(model, rng, tmp_path)
    parts = cut(range(LAYERS), 2)
    for ended in (True, False):
        reader = ProcessReader(segments, parts, processes)
        if ended:
            for process in processes._running[:2]:
                process.kill()
        for part in parts:
            assert gives(reader, segments, 2, part)
    assert all(process.poll() is None for process in processes._running)


def test_a_reader_that_is_given_up_leaves_nothing_to_the_next(model, rng, tmp_path, processes):
    segments, _ = segments_of(model, rng, tmp_path, lengths=(30, 400))
    for size in (1, 2, LAYERS):
        ProcessReader(segments, cut(range(LAYERS), size), processes)
        reader = ProcessReader(segments[:1], [range(LAYERS)], processes)
        assert gives(reader, segments[:1], LAYERS, range(LAYERS))


def test_memory_that_cannot_be_pinned_is_an_error_and_no_more(monkeypatch):
    own = ReadProcesses()
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        cuda = SimpleNamespace(cudaHostRegister=lambda *_: 2, cudaError=SimpleNamespace(success=0))
        patched.setattr(torch.cuda, "cudart", lambda: cuda)
        with pytest.raises(MemoryError, match=r"0\.50 GiB of this machine's memory could not be pinned"):
            own.room(1 + (1 << 28))
    assert not own._running
    assert len(own.room(1)) >= 1


def test_processes_end_with_what_they_are_for(model, rng, tmp_path):
    own, (segments, _) = ReadProcesses(), segments_of(model, rng, tmp_path)
    ProcessReader(segments, [range(LAYERS)], own)
    running = own._running
    assert running
    assert all(process.poll() is None for process in running)
    del own
    gc.collect()
    assert all(process.poll() == 0 for process in running)


@pytest.mark.parametrize("size", [1, 2, LAYERS])
def test_a_damaged_file_is_an_error_for_the_layers_read_with_it(model, rng, tmp_path, reader_of, size):
    segments, store = segments_of(model, rng, tmp_path)
    path, bad = segments[0].path, 4
    data, number = store.folder.files.cat_file(path), segments[0].layer(bad).numpy().tobytes()
    at = data.index(number)
    store.folder.files.pipe_file(path, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    parts = cut(range(LAYERS), size)
    reader = reader_of(segments, parts)
    for part in parts:
        if bad in part:
            with pytest.raises(StoreError, match=rf"layer\.{bad:03d} does not match its checksum"):
                read(reader)
        else:
            assert gives(reader, segments, size, part)


def test_a_file_that_is_gone_is_an_error(model, rng, tmp_path, reader_of):
    segments, store = segments_of(model, rng, tmp_path)
    store.folder.files.rm_file(segments[0].path)
    with pytest.raises(StoreError, match="is damaged"):
        read(reader_of(segments, [range(LAYERS)]))
