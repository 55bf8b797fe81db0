"""The parts in which layers are brought to their GPUs."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ragkv.loading.transfer import PART, divided, parts_of

NAMES = st.integers(0, 3).map(lambda number: torch.device("cuda", number))


@given(st.lists(NAMES, max_size=40), st.data())
def test_parts_are_all_layers_in_order_each_on_one_device(devices, data):
    first = data.draw(st.integers(0, len(devices)))
    layers = range(first, len(devices))
    parts = parts_of(layers, devices)
    assert [index for part in parts for index in part] == list(layers)
    assert all(0 < len(part) <= PART for part in parts)
    assert all(len({devices[index] for index in part}) == 1 for part in parts)
    assert all(len(part) == 1 for part in (parts[:1] + parts[-1:] if len(layers) > 1 else []))


@given(st.integers(0, 9), st.integers(0, 9), st.sets(st.integers(0, 9)))
def test_layers_are_divided_where_it_is_said(start, count, cuts):
    layers = range(start, start + count)
    parts = divided(layers, cuts.__contains__)
    assert [index for part in parts for index in part] == list(layers)
    assert {part.start for part in parts[1:]} == cuts & set(layers[1:])
