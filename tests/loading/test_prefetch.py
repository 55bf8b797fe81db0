"""A prefetching store gives what the store gives, reads each segment once, and keeps a call's segments together."""

import pytest
import torch
from helpers import memory_store, random_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkv import KVStore, StoreError
from ragkv.loading.prefetch import PrefetchingStore
from ragkv.loading.segments import PackedInMemory, adjacent
from ragkv.prompt import Segment
from ragkv.store import Layout
from ragkv.store.quantize import CODECS, FORMATS

LAYERS = 5
LENGTHS = (4, 1, 9, 2, 30, 7)


def filled(rng, format: str = "model", dtype: torch.dtype = torch.float32):
    """A store with segments of several lengths, its layout, and the segments."""
    store = KVStore(memory_store().url, format=format)
    layout = Layout("model", LAYERS, kv_heads=2, head_dim=4, dtype=dtype, format=format)
    segments = [Segment(tuple(random_ids(rng, length)), (1,)) for length in LENGTHS]
    for segment in segments:
        states = torch.tensor([rng.random() for _ in range(LAYERS * 2 * 2 * len(segment.ids) * 4)])
        store.write(layout, segment, states.view(LAYERS, 2, 2, -1, 4).to(dtype), torch.rand(len(segment.ids)))
    return store, layout, segments


def assert_same(ahead, store, layout, segments):
    for segment in segments:
        found, stored = ahead.open(layout, segment), store.open(layout, segment)
        assert (found.shape, found.dtype) == (stored.shape, stored.dtype)
        assert all(torch.equal(found.layer(index), stored.layer(index)) for index in range(LAYERS))
        assert torch.equal(found.surprisal(), stored.surprisal())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_prefetched_is_what_is_stored(rng, format, dtype):
    store, layout, segments = filled(rng, format, dtype)
    ahead = PrefetchingStore(store, layout)
    ahead.prefetch(segments)
    assert_same(ahead, store, layout, segments)
    assert CODECS.keys() < set(FORMATS)


@settings(max_examples=30)
@given(calls=st.lists(st.lists(st.integers(0, len(LENGTHS) - 1), max_size=8), max_size=5))
def test_every_call_gives_its_segments_side_by_side_and_reads_only_what_the_last_one_had_not(rng, calls):
    store, layout, segments = filled(rng)
    ahead, opened = PrefetchingStore(store, layout), []
    open_stored = store.open
    store.open = lambda layout, segment: opened.append(segment) or open_stored(layout, segment)
    last: set[Segment] = set()
    for numbers in calls:
        wanted = list(dict.fromkeys(segments[number] for number in numbers))
        ahead.prefetch(segments[number] for number in numbers)
        ahead.wait()
        assert sorted(opened, key=repr) == sorted(set(wanted) - last, key=repr)
        found = [ahead.open(layout, segment) for segment in wanted]
        assert len(adjacent(found)) == (1 if found else 0)
        assert_same(ahead, KVStore(store.url), layout, wanted)
        opened.clear()
        last = set(wanted)


@pytest.mark.parametrize("format", CODECS)
def test_quantised_segments_stay_packed_side_by_side(rng, format):
    """In as many bytes as the files hold of each layer, and as they were read also if an earlier call had them."""
    store, layout, segments = filled(rng, format)
    ahead = PrefetchingStore(store, layout)
    for wanted in (segments[:3], segments[2:]):
        ahead.prefetch(wanted)
        found = [ahead.open(layout, segment) for segment in wanted]
        assert all(isinstance(segment, PackedInMemory) for segment in found)
        assert len(adjacent(segment.packed for segment in found)) == 1
        for segment, held in zip(wanted, found, strict=True):
            stored = store.open(layout, segment)
            layers = [stored.read(f"layer.{index:03d}") for index in range(LAYERS)]
            expected = sum(part.nbytes for part in (*layers, *stored.scales))
            assert held.packed.layers.nbytes == expected
        assert_same(ahead, store, layout, wanted)


def test_the_same_call_again_changes_nothing(rng):
    store, layout, segments = filled(rng)
    ahead = PrefetchingStore(store, layout)
    ahead.prefetch(segments[:3])
    first = ahead.open(layout, segments[0])
    ahead.prefetch(segments[:3])
    assert ahead.open(layout, segments[0]) is first
    ahead.prefetch(segments[3:])
    assert ahead.open(layout, segments[0]) is first  # of the last but one
    ahead.prefetch(segments[1:2])
    assert ahead.open(layout, segments[0]) is not first  # read from the store


def test_buffers_of_earlier_calls_are_freed(rng):
    """Also if every call has a segment of the call before, as prompts with the same prefix do."""
    store, layout, segments = filled(rng)
    ahead = PrefetchingStore(store, layout)
    ahead.prefetch(segments[:2])
    first = ahead.open(layout, segments[0])
    storage = first.layers.untyped_storage().data_ptr()
    ahead.prefetch([segments[0], segments[2]])
    ahead.wait()
    kept = ahead.open(layout, segments[0])
    assert kept.layers.untyped_storage().data_ptr() != storage
    assert torch.equal(kept.layers, first.layers)


def test_a_segment_that_cannot_be_read_leaves_the_others_alone(rng):
    store, layout, segments = filled(rng)
    missing = Segment((5, 6, 7))
    path = store.path(layout.key(segments[1]))
    data = bytearray(store.folder.files.cat_file(path))
    data[-1] ^= 1
    store.folder.files.pipe_file(path, bytes(data))
    ahead = PrefetchingStore(store, layout)
    for wanted in ([missing, *segments], [*segments, missing]):  # what failed is read again by the next call
        ahead.prefetch(wanted)
        ahead.wait()
        with pytest.raises(KeyError):
            ahead.open(layout, missing)
        with pytest.raises(StoreError, match="is damaged"):
            ahead.open(layout, segments[1])
        assert_same(ahead, store, layout, [segments[0], *segments[2:]])
