"""Readers, with threads or worker processes, give the layers that are read one by one; errors reach the caller."""

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
from ragkv.loading.readers import ThreadReader, WorkerReader
from ragkv.loading.segments import SegmentInMemory
from ragkv.loading.workers import ReadWorkers
from ragkv.store import Layout
from ragkv.store.quantize import CODECS, FORMATS, dequantize
from ragkv.store.stored_segment import PackedSegment

LAYERS = 9


@pytest.fixture(scope="module")
def model():
    return make_model("llama", num_hidden_layers=LAYERS)


def segments_of(model, rng, folder, lengths=(5, 1, 30)):
    """Segments, every other one in memory and the rest in a store's files; and that store."""
    memory = InMemory.computed(model, Prompt([], [random_ids(rng, length) for length in lengths], [9]))
    store, layout = KVStore(folder), Layout.of(model)
    memory.into(store, model)
    return [memory.segments[s] if i % 2 else store.open(layout, s) for i, s in enumerate(memory.segments)], store


def one_by_one(segments, group):
    """A group's layers, read one by one, as one flat tensor per segment."""
    return [torch.stack([segment.layer(i) for i in group]).flatten() for segment in segments]


def by_segment(segments, staging, longest, group):
    """A group's layers in a staging buffer, as one flat tensor per segment."""
    numbers, sizes = staging.view(segments[0].dtype), [prod(segment.shape) for segment in segments]
    spaces = numbers.split([longest * size for size in sizes])
    return [space[: len(group) * size] for space, size in zip(spaces, sizes, strict=True)]


def cut(layers, size):
    """The layers in groups of this size."""
    return [layers[i : i + size] for i in range(0, len(layers), size)]


class Watched:
    """A segment that records which layers are read, and blocks reads until `may_read` is set."""

    def __init__(self, layers):
        self._segment = SegmentInMemory(torch.rand(layers, 2, 2, 3, 4), torch.zeros(3))
        self.layer = self._segment.layer
        self.layer_bytes = self._segment.layer_bytes
        self.layers_read = []
        self.may_read = Event()

    def read_layers(self, first, buffers):
        self.layers_read.extend(range(first, first + len(buffers)))
        self.may_read.wait()
        self._segment.read_layers(first, buffers)

    def delegate(self, index, buffer):
        self.read_layers(index, [buffer])


@pytest.fixture(scope="module")
def workers():
    shared = ReadWorkers()
    shared.count = 3  # on any machine
    return shared


@pytest.fixture(params=[ThreadReader, WorkerReader])
def reader_of(request, workers):
    """Makes a reader of one kind."""
    return request.param if request.param is ThreadReader else partial(WorkerReader, workers=workers)


def next_group(reader):
    reader.copy_next(target := torch.zeros(reader.size, dtype=torch.uint8))
    return target


def gives(reader, segments, longest, group):
    """Whether the reader's next group holds these layers of the segments."""
    found = by_segment(segments, next_group(reader), longest, group)
    return all(map(torch.equal, found, one_by_one(segments, group)))


@settings(max_examples=30)
@given(st.integers(1, LAYERS + 1), st.integers(1, 4), st.integers(0, LAYERS - 1), st.booleans(), st.booleans())
def test_groups_hold_the_layers_read_one_by_one(
    model, rng, tmp_path, monkeypatch, reader_of, size, at_a_time, first, inference, large
):
    """With and without PyTorch's inference mode, which prefills use; also if few staging buffers are allowed."""
    monkeypatch.setattr("ragkv.loading.readers.GROUPS_READING", at_a_time)
    monkeypatch.setattr("ragkv.loading.readers.BUFFER_LIMIT", 1 if large else 1 << 32)
    with torch.inference_mode(inference):
        segments, _ = segments_of(model, rng, tmp_path)
        groups = cut(range(first, LAYERS), size)
        reader = reader_of(segments, groups)
        for group in groups:
            assert gives(reader, segments, len(groups[0]), group)


@pytest.mark.parametrize("format", CODECS)
def test_quantised_segments_are_read_as_they_are_stored(model, rng, tmp_path, reader_of, format):
    memory, layout = InMemory.computed(model, Prompt([], [random_ids(rng, 7)], [9])), Layout.of(model, format)
    store = KVStore(tmp_path, format=format)
    memory.into(store, model)
    stored = store.open(layout, *memory.segments)
    packed, (_, heads, tokens, head_dim) = PackedSegment(stored), stored.shape
    layers = next_group(reader_of([packed], [range(3, 5)])).split(packed.layer_bytes)
    for index, layer in zip((3, 4), layers, strict=True):
        sizes = [len(layer) - heads * (head_dim + tokens), heads * head_dim, heads * tokens]
        codes, keys, values = layer.split(sizes)
        codes = codes.view(CODECS[format].codes).view(2, heads, tokens, -1)
        scales = keys.view(torch.int8).view(heads, head_dim), values.view(torch.int8).view(heads, tokens)
        assert torch.equal(dequantize(codes, *scales, format, layout.dtype), stored.layer(index))


@pytest.mark.parametrize("format", FORMATS)
def test_segments_that_are_not_in_local_files_are_read_in_this_process(model, rng, workers, format):
    store, layout = KVStore("memory://reader", format=format), Layout.of(model, format)
    memory = InMemory.computed(model, Prompt([], [random_ids(rng, 7)], [9]))
    memory.into(store, model)
    segments = [store.open(layout, *memory.segments)]
    assert gives(WorkerReader(segments, [range(2, 5)], workers), segments, 3, range(2, 5))


def test_more_segments_than_threads(model, rng, tmp_path, reader_of):
    segments, _ = segments_of(model, rng, tmp_path, lengths=range(1, 30))
    groups = cut(range(LAYERS), 4)
    reader = reader_of(segments, groups)
    for group in groups:
        assert gives(reader, segments, 4, group)


@settings(max_examples=30)
@given(size=st.integers(1, LAYERS), at_a_time=st.integers(1, 4))
def test_only_so_many_groups_are_in_memory_at_a_time(monkeypatch, reader_of, size, at_a_time):
    monkeypatch.setattr("ragkv.loading.readers.GROUPS_READING", at_a_time)
    segment, groups = Watched(LAYERS), cut(range(LAYERS), size)
    segment.may_read.set()
    reader = reader_of([segment], groups)
    for number, group in enumerate(groups):
        assert max(segment.layers_read, default=0) < group.start + size * at_a_time, number
        next_group(reader)
    assert sorted(segment.layers_read) == list(range(LAYERS))  # each once


def test_a_group_that_a_thread_is_reading_is_not_ready():
    segment = Watched(4)
    reader = ThreadReader([segment], [range(2), range(2, 4)])
    assert not reader.ready()
    segment.may_read.set()
    assert torch.equal(next_group(reader).view(torch.float32), torch.cat(one_by_one([segment], range(2))))


def test_a_group_that_workers_are_reading_is_not_ready(model, rng, tmp_path, workers):
    segments, _ = segments_of(model, rng, tmp_path)
    workers.buffer(1)
    for worker in workers._workers:
        worker.send_signal(SIGSTOP)
    reader = WorkerReader(segments, [range(LAYERS)], workers)
    assert not reader.ready()
    for worker in workers._workers:
        worker.send_signal(SIGCONT)
    while not reader.ready():
        pass
    assert gives(reader, segments, LAYERS, range(LAYERS))


def test_workers_read_ranges_and_say_whether_they_are_intact(model, rng, tmp_path, workers):
    """Nothing else fills the buffer here, so it is the workers that read."""
    segments, _ = segments_of(model, rng, tmp_path, lengths=(3000,))  # a layer is several blocks
    layer = segments[0].layer_range(3)
    buffer = workers.buffer(3 * layer.size)
    buffer.zero_()
    unused = 2 * layer.size  # an offset whose bytes nobody looks at
    intact = workers.submit([(layer, layer.size), (segments[0].layer_range(4), 0)])
    wrong = [
        layer._replace(salt=""),
        layer._replace(start=0),
        layer._replace(path=str(tmp_path / "missing")),
        layer._replace(size=1 << 30),
    ]
    failing = [workers.submit([(byte_range, unused)]) for byte_range in wrong]
    assert workers.wait(intact)
    both = torch.cat([segments[0].layer(i).flatten() for i in (4, 3)])
    assert torch.equal(buffer[: 2 * layer.size].view(torch.float32), both)
    assert not any(map(workers.wait, failing))


def test_workers_that_were_killed_are_replaced(model, rng, tmp_path, workers):
    """The reader that waits for them reads by itself; the next one gets new workers."""
    segments, _ = segments_of(model, rng, tmp_path)
    groups = cut(range(LAYERS), 2)
    for killed in (True, False):
        reader = WorkerReader(segments, groups, workers)
        if killed:
            for worker in workers._workers[:2]:
                worker.kill()
        for group in groups:
            assert gives(reader, segments, 2, group)
    assert all(worker.poll() is None for worker in workers._workers)


def test_an_abandoned_reader_does_not_disturb_the_next(model, rng, tmp_path, workers):
    segments, _ = segments_of(model, rng, tmp_path, lengths=(30, 400))
    for size in (1, 2, LAYERS):
        WorkerReader(segments, cut(range(LAYERS), size), workers)
        reader = WorkerReader(segments[:1], [range(LAYERS)], workers)
        assert gives(reader, segments[:1], LAYERS, range(LAYERS))


def test_memory_that_cannot_be_pinned_is_an_error_from_which_workers_recover(monkeypatch):
    """Kernels too: CUDA would report the error once more when the next one is started."""
    workers, taken = ReadWorkers(), []
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        cuda = SimpleNamespace(cudaHostRegister=lambda *_: 2, cudaError=SimpleNamespace(success=0))
        patched.setattr(torch.cuda, "cudart", lambda: cuda)
        patched.setattr("ragkv.loading.pinned._let_a_kernel_fail", lambda: taken.append("the error"))
        with pytest.raises(MemoryError, match=r"0\.50 GiB of this machine's memory could not be pinned"):
            workers.buffer(1 + (1 << 28))
    assert taken == ["the error"]
    assert not workers._workers
    assert len(workers.buffer(1)) >= 1


def test_workers_end_when_nobody_needs_them(model, rng, tmp_path):
    workers, (segments, _) = ReadWorkers(), segments_of(model, rng, tmp_path)
    WorkerReader(segments, [range(LAYERS)], workers)
    running = workers._workers
    assert running
    assert all(worker.poll() is None for worker in running)
    del workers
    gc.collect()
    assert all(worker.poll() == 0 for worker in running)


@pytest.mark.parametrize("size", [1, 2, LAYERS])
def test_a_damaged_file_is_an_error_for_the_layers_read_with_it(model, rng, tmp_path, reader_of, size):
    segments, store = segments_of(model, rng, tmp_path)
    path, bad = segments[0].path, 4
    data, layer = store.folder.files.cat_file(path), segments[0].layer(bad).numpy().tobytes()
    start = data.index(layer)
    store.folder.files.pipe_file(path, data[:start] + bytes([data[start] ^ 1]) + data[start + 1 :])
    groups = cut(range(LAYERS), size)
    reader = reader_of(segments, groups)
    for group in groups:
        if bad in group:
            with pytest.raises(StoreError, match=rf"layer\.{bad:03d} does not match its checksum"):
                next_group(reader)
        else:
            assert gives(reader, segments, size, group)


def test_a_missing_file_is_an_error(model, rng, tmp_path, reader_of):
    segments, store = segments_of(model, rng, tmp_path)
    store.folder.files.rm_file(segments[0].path)
    with pytest.raises(StoreError, match="is damaged"):
        next_group(reader_of(segments, [range(LAYERS)]))
