"""A segment gives the same layers one by one and in blocks, wherever it lies."""

import json
import os
from pathlib import Path

import pytest
import torch
from helpers import memory_store
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkv import KVStore, StoreError
from ragkv.loading.segments import SegmentInMemory, SegmentKV
from ragkv.prompt import Segment
from ragkv.store import Cache, Layout
from ragkv.store.files import Folder
from ragkv.store.quantize import FORMATS
from ragkv.store.segment_file import as_bytes

LAYERS = 7
SEGMENT = Segment((5, 6, 7, 8, 9), (1,))
PLACES = ("folder", "memory", "behind a cache", "in a cache")
NOTHING = 77.0  # what a room holds before it is filled


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


def filled(segment: SegmentKV, first: int, count: int) -> list[torch.Tensor]:
    """Some layers, side by side in a larger tensor whose other numbers stay."""
    size = torch.Size(segment.shape).numel()
    around = torch.full((3 + count * size + 5,), NOTHING, dtype=segment.dtype)
    rooms = around[3:-5].split(size)
    segment.fill(first, [as_bytes(room) for room in rooms])
    assert (around[:3] == NOTHING).all()
    assert (around[-5:] == NOTHING).all()
    return [room.view(segment.shape) for room in rooms]


def blocks(sizes: list[int]) -> list[tuple[int, int]]:
    """All layers in blocks of these sizes and a last one of what is left: its first layer, and how many."""
    found, first = [], 0
    for size in [*sizes, LAYERS]:
        count = min(size, LAYERS - first)
        if count:
            found.append((first, count))
        first += count
    return found


@pytest.fixture(params=["memory", *((place, format) for place in PLACES for format in FORMATS)], ids=str)
def segment(request, tmp_path) -> SegmentKV:
    if request.param == "memory":
        return SegmentInMemory(*random_layers(torch.bfloat16))
    place, format = request.param
    store, layout = stored(place, tmp_path, format, torch.bfloat16)
    return store.open(layout, SEGMENT)


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(1, LAYERS), max_size=LAYERS))
def test_blocks_of_any_size_are_the_layers_one_by_one(segment, sizes):
    for first, count in blocks(sizes):
        for index, found in enumerate(filled(segment, first, count), first):
            assert torch.equal(found, segment.layer(index))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_what_was_written_is_filled_in(tmp_path, place, dtype):
    store, layout = stored(place, tmp_path, "model", dtype)
    assert torch.equal(torch.stack(filled(store.open(layout, SEGMENT), 0, LAYERS)), random_layers(dtype)[0])


def test_layers_that_are_not_there_are_an_error(tmp_path):
    store, layout = stored("folder", tmp_path, "model", torch.float32)
    for segment in (store.open(layout, SEGMENT), SegmentInMemory(*random_layers(torch.float32))):
        with pytest.raises((LookupError, ValueError)):
            filled(segment, LAYERS - 1, 2)


def spans(data: bytes) -> list[range]:
    """Where each layer's bytes lie in the file, by the format's own header."""
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    offsets = (header[f"layer.{i:03d}"]["data_offsets"] for i in range(LAYERS))
    return [range(begin + start, begin + stop) for start, stop in offsets]


@pytest.mark.parametrize("place", ["folder", "memory"])
@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=15)
@given(sizes=st.lists(st.integers(1, LAYERS), max_size=LAYERS), layer=st.integers(0, LAYERS - 1), data=st.data())
def test_damage_behind_the_header_is_found_where_it_is(tmp_path, place, format, sizes, layer, data):
    """After the segment was opened: a flipped bit in one layer, the file cut within it, or no file any more."""
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
                found = filled(opened, first, count)
            except StoreError as error:
                assert "Run precompute again" in str(error)
                assert damaged is not flipped or layer in range(first, first + count)
            else:
                assert layer not in range(first, first + count)
                assert all(map(torch.equal, found, layers[first : first + count]))


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=100)
@given(data=st.data())
def test_no_flipped_bit_of_the_header_fills_rooms_with_other_numbers(tmp_path, format, data):
    store, layout = stored("folder", tmp_path, format, torch.bfloat16)
    path, opened = Path(store.path(layout.key(SEGMENT))), store.open(layout, SEGMENT)
    whole, layers = path.read_bytes(), [opened.layer(i) for i in range(LAYERS)]
    at = data.draw(st.integers(0, min(spans(whole)[0]) - 1))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))]) + whole[at + 1 :])
    try:
        found = filled(store.open(layout, SEGMENT), 0, LAYERS)
    except StoreError:
        return
    assert all(map(torch.equal, found, layers))


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), most=st.integers(1, 5), start=st.integers(0, 4))
def test_a_system_that_reads_less_than_asked_is_asked_again(tmp_path_factory, sizes, most, start):
    """As Linux does behind two gigabytes."""
    folder, data = Folder(str(tmp_path_factory.mktemp("short"))), bytes(range(60))
    folder.write("a/file", data)
    whole = os.preadv

    def short(file, rooms, offset):
        first = next((room for room in rooms if len(room)), rooms[0])
        return whole(file, [first[:most]], offset)

    rooms = [memoryview(bytearray(size)) for size in sizes]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "preadv", short)
        assert folder.read_into("a/file", start, rooms) == sum(sizes)
    assert b"".join(rooms) == data[start : start + sum(sizes)]
