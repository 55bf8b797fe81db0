"""The groups in which layers are brought to their GPUs, and the order of copies beside the layers that are computed."""

from contextlib import contextmanager

import pytest
import torch
from helpers import make_model, random_ids
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ragkv import KVStore, Prompt
from ragkv.loading import transfer
from ragkv.loading.layer_groups import GROUP_SIZE, device_spans, layer_groups, split_layers
from ragkv.loading.memory import InMemory
from ragkv.loading.segments import SegmentInMemory, adjacent
from ragkv.loading.transfer import GROUPS_IN_FLIGHT, Transfer
from ragkv.store import Layout

CPU = torch.device("cpu")
NAMES = st.integers(0, 3).map(lambda number: torch.device("cuda", number))


@given(st.lists(NAMES, max_size=40), st.data())
def test_parts_are_all_layers_in_order_each_on_one_device(devices, data):
    first = data.draw(st.integers(0, len(devices)))
    layers = range(first, len(devices))
    groups = layer_groups(layers, devices)
    assert [index for group in groups for index in group] == list(layers)
    assert all(0 < len(group) <= GROUP_SIZE for group in groups)
    assert all(len({devices[index] for index in group}) == 1 for group in groups)
    assert all(len(group) == 1 for group in (groups[:1] + groups[-1:] if len(layers) > 1 else []))


@given(st.lists(NAMES, max_size=40), st.data())
def test_spans_are_as_long_as_the_device_stays_the_same(devices, data):
    layers = range(data.draw(st.integers(0, len(devices))), len(devices))
    spans = device_spans(layers, devices)
    assert [index for span in spans for index in span] == list(layers)
    assert all(len({devices[index] for index in span}) == 1 for span in spans)
    assert all(devices[span.start] != devices[span.start - 1] for span in spans[1:])


@given(st.integers(0, 9), st.integers(0, 9), st.sets(st.integers(0, 9)))
def test_layers_are_divided_where_it_is_said(start, count, cuts):
    layers = range(start, start + count)
    groups = split_layers(layers, cuts.__contains__)
    assert [index for group in groups for index in group] == list(layers)
    assert {group.start for group in groups[1:]} == cuts & set(layers[1:])


class Streams(TorchDispatchMode):
    """A copying stream beside a computing one, as a log of what the host gives to them, in order.

    As a dispatch mode it also sees the copies into buffers that the copying stream uses.
    """

    def __init__(self):
        super().__init__()
        self.is_active = False
        self.log = []
        self.used = []

    @contextmanager
    def active(self):
        self.is_active = True
        yield
        self.is_active = False

    def wait_for_computation(self):
        self.log.append(("copies wait",))

    def record(self):
        assert self.is_active
        event = object()
        self.log.append(("record", event))
        return event

    def computation_waits(self, event):
        assert not self.is_active
        self.log.append(("computation waits", event))

    def uses(self, memory):
        self.used.append(memory.untyped_storage().data_ptr())

    def __torch_dispatch__(self, function, types, args=(), options=None):
        if function is torch.ops.aten.copy_.default and args[0].untyped_storage().data_ptr() in self.used:
            assert self.is_active
            self.log.append(("copy",))
        return function(*args, **(options or {}))


LAYERS = 23
MODEL_DEVICES = [CPU] * LAYERS


def numbered(tokens):
    """A segment each layer of which holds its own number."""
    numbers = torch.arange(LAYERS).float().view(LAYERS, 1, 1, 1, 1)
    return SegmentInMemory(numbers.expand(LAYERS, 2, 2, tokens, 4).clone(), torch.zeros(tokens))


def run(segments, layers, streams, after=lambda index: None):
    """Transfer layers one by one; what was staged when each group was placed."""
    staged = {}
    copying = Transfer(segments, layer_groups(layers, MODEL_DEVICES), CPU, stream=streams)

    def place(group):
        assert streams.is_active
        streams.log.append(("place", group))
        staged[group] = [buffer[: len(group)].clone() for buffer in copying.staged]

    copying.start(place)
    assert streams.log == [("copies wait",)]  # memory may be in use; nothing is copied before it is asked for
    for index in layers:
        with streams:
            copying.layer(index)
        streams.log.append(("compute", index))
        after(index)
    return staged


@pytest.fixture(params=["read by threads", "copied directly"])
def kind(request, monkeypatch):
    """Segments in ordinary memory take a detour through pinned memory; those in pinned memory do not."""
    monkeypatch.setattr(transfer, "_copies_directly", lambda segment: request.param == "copied directly")
    return request.param


@pytest.mark.parametrize("layers", [range(LAYERS), range(5, LAYERS), range(3, 4)], ids=str)
def test_each_part_is_copied_before_it_is_placed(kind, layers):
    """In order, and the buffers that all groups share still hold a group while it is placed."""
    staged = run([numbered(3), numbered(5)], layers, Streams())
    assert list(staged) == layer_groups(layers, MODEL_DEVICES)
    for group, segments in staged.items():
        expected = torch.tensor(group).float()
        for states, tokens in zip(segments, (3, 5), strict=True):
            assert torch.equal(states, expected.view(-1, 1, 1, 1, 1).expand(len(group), 2, 2, tokens, 4))


def test_buffers_are_overwritten_only_behind_what_reads_them(kind):
    """All copies and all placing go to one stream, each group's copies behind the placing of the group before."""
    streams = Streams()
    run([numbered(3), numbered(5)], range(LAYERS), streams)
    steps = [(name, *rest) if name == "place" else (name,) for name, *rest in streams.log]
    copies = [("copy",)] * (1 if kind == "read by threads" else 2)  # what is read arrives as one piece
    expected = [
        step
        for group in layer_groups(range(LAYERS), MODEL_DEVICES)
        for step in (*copies, ("place", group), ("record",))
    ]
    assert [step for step in steps if step[0] in ("copy", "place", "record")] == expected
    assert len(streams.used) == 1  # when they are freed, that stream may not be done with them


def test_a_layer_waits_for_the_event_of_its_part(kind):
    streams = Streams()
    run([numbered(3)], range(LAYERS), streams)
    event_of, placed = {}, None
    waits = []
    for name, *rest in streams.log:
        if name == "place":
            (placed,) = rest
        elif name == "record":
            event_of |= dict.fromkeys(placed, rest[0])
        elif name == "computation waits":
            waits.append(rest[0])
        elif name == "compute":
            assert waits[-1] is event_of[rest[0]]
    assert waits == [event_of[index] for index in range(LAYERS)]  # each layer once, and nothing else


def test_no_more_parts_are_in_flight_than_allowed(kind):
    """What is ahead of the layer that is computed is always the next layers, and never more than two groups' worth."""
    streams = Streams()
    ahead = []

    def count(index):
        placed = [layer for name, *rest in streams.log if name == "place" for layer in rest[0]]
        ahead.append(len(placed) - index - 1)

    run([numbered(3)], range(LAYERS), streams, count)
    assert max(ahead) <= GROUPS_IN_FLIGHT * GROUP_SIZE
    if kind == "copied directly":  # nothing to wait for: there is always something ahead
        assert max(ahead) > GROUP_SIZE
        assert all(layers > 0 for layers in ahead[:-1])


def test_a_part_that_is_still_read_is_not_waited_for(monkeypatch):
    """The host goes on with the layers that are there, and asks for the group when it needs it."""
    monkeypatch.setattr(transfer.ThreadReader, "ready", lambda self: False)
    streams = Streams()
    run([numbered(3)], range(LAYERS), streams)
    order = [entry[1] for entry in streams.log if entry[0] in ("place", "compute")]
    groups = layer_groups(range(LAYERS), MODEL_DEVICES)
    assert order == [step for group in groups for step in (group, *group)]


def beside(*tokens):
    """Numbered segments of these lengths side by side in each row of one buffer, with some more in front of them."""
    segments = [numbered(length) for length in tokens]
    buffer = torch.cat([torch.full((LAYERS, 3), -1.0), *(segment.layers.flatten(1) for segment in segments)], dim=1)
    columns = buffer[:, 3:].split([segment.layers[0].numel() for segment in segments], dim=1)
    return [
        SegmentInMemory(part.unflatten(1, segment.shape), segment.scores)
        for part, segment in zip(columns, segments, strict=True)
    ]


@pytest.mark.parametrize("order", ["as they lie", "another", "with one from elsewhere"])
def test_segments_that_lie_side_by_side_are_copied_together(order, monkeypatch):
    """Whatever is copied together, each segment is staged in its own shape."""
    monkeypatch.setattr(transfer, "_copies_directly", lambda segment: True)
    first, second, third = beside(3, 1, 5)
    segments, runs = {
        "as they lie": ([first, second, third], 1),
        "another": ([second, third, first], 2),
        "with one from elsewhere": ([first, numbered(2), second, third], 3),
    }[order]
    streams = Streams()
    staged = run(segments, range(LAYERS), streams)
    for group, found in staged.items():
        for states, segment in zip(found, segments, strict=True):
            assert torch.equal(states, segment.layers[group.start : group.stop])
            assert all(layer.is_contiguous() for layer in states)
    elsewhere = len(layer_groups(range(LAYERS), MODEL_DEVICES)) if order == "with one from elsewhere" else 0
    layer_by_layer = LAYERS * (runs - (elsewhere > 0))
    assert [name for name, *_ in streams.log].count("copy") == layer_by_layer + elsewhere


def test_a_whole_buffer_is_copied_group_by_group(monkeypatch):
    monkeypatch.setattr(transfer, "_copies_directly", lambda segment: True)
    buffer = torch.arange(LAYERS * 2 * 2 * 8 * 4).float().view(LAYERS, -1)
    parts = buffer.split([2 * 2 * 3 * 4, 2 * 2 * 5 * 4], dim=1)
    segments = [SegmentInMemory(part.unflatten(1, (2, 2, -1, 4)), torch.zeros(1)) for part in parts]
    streams = Streams()
    staged = run(segments, range(LAYERS), streams)
    assert [name for name, *_ in streams.log].count("copy") == len(staged)


def test_segments_that_only_seem_to_lie_side_by_side_are_copied_alone():
    """One layer behind the other, in rows of other widths, in another buffer or with tokens between them."""
    first, second = beside(3, 1)
    stacked = numbered(3).layers.expand(LAYERS, 2, 2, 3, 4).clone()
    layers = torch.cat((stacked, stacked))
    in_turn = [SegmentInMemory(half, torch.zeros(3)) for half in layers.split(LAYERS)]
    padded = torch.zeros(LAYERS, 2, 2, 8, 4)
    cut = [SegmentInMemory(part, torch.zeros(3)) for part in (padded[..., :3, :], padded[..., 3:6, :])]
    copies = [SegmentInMemory(segment.layers.clone(), segment.scores) for segment in (first, second)]
    half = SegmentInMemory(second.layers[: LAYERS // 2], second.scores)
    for segments in (in_turn, cut, copies, [first, half], [first, first], [second, first]):
        assert adjacent(segments) == [[segment] for segment in segments]
    assert adjacent([first, second]) == [[first, second]]
    assert adjacent([]) == []


def test_files_and_memory_are_staged_side_by_side(rng, tmp_path):
    model = make_model("llama", num_hidden_layers=9)
    memory = InMemory.computed(model, Prompt([], [random_ids(rng, length) for length in (5, 1, 30)], [9]))
    store, layout = KVStore(tmp_path), Layout.of(model)
    memory.into(store, model)
    segments = [memory.segments[s] if i % 2 else store.open(layout, s) for i, s in enumerate(memory.segments)]
    groups = layer_groups(range(9), [CPU] * 9)
    copying = Transfer(segments, groups, CPU, stream=Streams())
    seen = []

    def place(group):
        for offset, index in enumerate(group):
            for buffer, segment in zip(copying.staged, segments, strict=True):
                seen.append(torch.equal(buffer[offset], segment.layer(index)))

    copying.start(place)
    for index in range(9):
        copying.layer(index)
    assert len(seen) == 9 * 3
    assert all(seen)
