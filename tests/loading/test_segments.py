"""A segment gives the same layers one by one and in blocks, wherever it is stored."""

import json
import os
from pathlib import Path

import pytest
import torch
from helpers import memory_store
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkv import KVStore, StoreError
from ragkv.loading.prefetch import PrefetchingStore
from ragkv.loading.segments import SegmentInMemory, SegmentKV
from ragkv.prompt import Segment
from ragkv.store import Cache, Layout
from ragkv.store.files import Folder
from ragkv.store.quantize import FORMATS
from ragkv.store.segment_file import as_bytes

LAYERS = 7
SEGMENT = Segment((5, 6, 7, 8, 9), (1,))
PLACES = ("folder", "memory", "behind a cache", "in a cache")
UNTOUCHED = 77.0  # what a buffer holds before it is filled


def random_layers(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    layers = torch.randn(LAYERS, 2, 2, len(SEGMENT.ids), 16, generator=generator).to(dtype)
    return layers, torch.rand(len(SEGMENT.ids), generator=generator)


def stored(place: str, folder, format: str, dtype: torch.dtype) -> tuple[KVStore, Layout]:
    """A store that holds the segment, and its layout."""
    store = KVStore(folder / "kv", format=format) if place == "folder" else memory_store()
    layout = Layout("model", LAYERS, 2, 16, dtype, format)
    store.write(layout, SEGMENT, *random_layers(dtype))
    if "cache" in place:
        store.cache = Cache(folder / "cache", 1e9)
    if place == "in a cache":
        store.open(layout, SEGMENT)  # a copy is kept
    return store, layout


def layers_read(segment: SegmentKV, first: int, count: int) -> list[torch.Tensor]:
    """Layers read into the middle of a larger tensor, the rest of which must not change."""
    size = torch.Size(segment.shape).numel()
    whole = torch.full((3 + count * size + 5,), UNTOUCHED, dtype=segment.dtype)
    buffers = whole[3:-5].split(size)
    segment.read_layers(first, [as_bytes(buffer) for buffer in buffers])
    assert (whole[:3] == UNTOUCHED).all()
    assert (whole[-5:] == UNTOUCHED).all()
    return [buffer.view(segment.shape) for buffer in buffers]


def blocks(sizes: list[int]) -> list[tuple[int, int]]:
    """All layers in blocks of these sizes and one for the rest, as pairs (first layer, number of layers)."""
    pairs, first = [], 0
    for size in [*sizes, LAYERS]:
        count = min(size, LAYERS - first)
        if count:
            pairs.append((first, count))
        first += count
    return pairs


AHEAD = [("ahead", format) for format in FORMATS]


@pytest.fixture(params=["memory", *AHEAD, *((place, format) for place in PLACES for format in FORMATS)], ids=str)
def segment(request, tmp_path) -> SegmentKV:
    if request.param == "memory":
        return SegmentInMemory(*random_layers(torch.bfloat16))
    place, format = request.param
    if place == "ahead":
        store, layout = stored("folder", tmp_path, format, torch.bfloat16)
        ahead = PrefetchingStore(store, layout)
        ahead.prefetch([SEGMENT])
        return ahead.open(layout, SEGMENT)
    store, layout = stored(place, tmp_path, format, torch.bfloat16)
    return store.open(layout, SEGMENT)


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(1, LAYERS), max_size=LAYERS))
def test_blocks_of_any_size_hold_the_layers_read_one_by_one(segment, sizes):
    for first, count in blocks(sizes):
        for index, found in enumerate(layers_read(segment, first, count), first):
            assert torch.equal(found, segment.layer(index))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_layers_are_read_as_they_were_written(tmp_path, place, dtype):
    store, layout = stored(place, tmp_path, "model", dtype)
    assert torch.equal(torch.stack(layers_read(store.open(layout, SEGMENT), 0, LAYERS)), random_layers(dtype)[0])


def test_layers_that_do_not_exist_are_an_error(tmp_path):
    store, layout = stored("folder", tmp_path, "model", torch.float32)
    for segment in (store.open(layout, SEGMENT), SegmentInMemory(*random_layers(torch.float32))):
        with pytest.raises((LookupError, ValueError)):
            layers_read(segment, LAYERS - 1, 2)


def spans(data: bytes) -> list[range]:
    """The byte offsets of each layer in the file, from the safetensors header."""
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    offsets = (header[f"layer.{i:03d}"]["data_offsets"] for i in range(LAYERS))
    return [range(begin + start, begin + stop) for start, stop in offsets]


@pytest.mark.parametrize("place", ["folder", "memory"])
@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=15)
@given(sizes=st.lists(st.integers(1, LAYERS), max_size=LAYERS), layer=st.integers(0, LAYERS - 1), data=st.data())
def test_damage_behind_the_header_is_found_where_it_is(tmp_path, place, format, sizes, layer, data):
    """The damage happens after the segment was opened: a flipped bit in one layer, a file cut short, a missing file."""
    store, layout = stored(place, tmp_path, format, torch.bfloat16)
    opened, files, path = store.open(layout, SEGMENT), store.folder.files, store.path(layout.key(SEGMENT))
    layers, whole = [opened.layer(i) for i in range(LAYERS)], files.cat_file(path)
    at = data.draw(st.sampled_from(spans(whole)[layer]))
    flipped = whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :]
    for damaged in (flipped, whole[:at], None):
        files.rm_file(path)
        if damaged is not None:
            files.pipe_file(path, damaged)
        for first, count in blocks(sizes):
            try:
                found = layers_read(opened, first, count)
            except StoreError as error:
                assert "Run precompute again" in str(error)
                assert damaged is not flipped or layer in range(first, first + count)
            else:
                assert layer not in range(first, first + count)
                assert all(map(torch.equal, found, layers[first : first + count]))


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=100)
@given(data=st.data())
def test_no_flipped_bit_of_the_header_gives_other_numbers(tmp_path, format, data):
    store, layout = stored("folder", tmp_path, format, torch.bfloat16)
    path, opened = Path(store.path(layout.key(SEGMENT))), store.open(layout, SEGMENT)
    whole, layers = path.read_bytes(), [opened.layer(i) for i in range(LAYERS)]
    at = data.draw(st.integers(0, min(spans(whole)[0]) - 1))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :])
    try:
        found = layers_read(store.open(layout, SEGMENT), 0, LAYERS)
    except StoreError:
        return
    assert all(map(torch.equal, found, layers))


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), most=st.integers(1, 5), start=st.integers(0, 4))
def test_short_reads_are_continued(tmp_path_factory, sizes, most, start):
    """Linux reads at most two gigabytes per call."""
    folder, data = Folder(str(tmp_path_factory.mktemp("short"))), bytes(range(60))
    folder.write("a/file", data)
    whole = os.preadv

    def short(file, buffers, offset):
        first = next((buffer for buffer in buffers if len(buffer)), buffers[0])
        return whole(file, [first[:most]], offset)

    buffers = [memoryview(bytearray(size)) for size in sizes]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "preadv", short)
        assert folder.read_into("a/file", start, buffers) == sum(sizes)
    assert b"".join(buffers) == data[start : start + sum(sizes)]
