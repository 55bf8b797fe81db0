"""A store with a few small segments, for tests."""

import os
from contextlib import suppress

import torch

from ragkv import KVStore
from ragkv.prompt import Segment
from ragkv.store import Layout

LAYOUT = Layout("0" * 64, layers=2, kv_heads=1, head_dim=4, dtype=torch.float32)
SEGMENTS = [Segment((number,) * 3) for number in range(5)]
KEYS = [LAYOUT.key(segment) for segment in SEGMENTS]


def fill(store: KVStore) -> None:
    """Write all segments; the numbers in each one's first layer are its own number, and ten more in the second."""
    for number, segment in enumerate(SEGMENTS):
        layers = torch.full((2, 2, 1, 3, 4), float(number))
        layers[1] += 10
        store.write(LAYOUT, segment, layers, torch.zeros(3))


def intact(store: KVStore) -> set[int]:
    """The numbers of the segments that can be read."""
    found = set()
    for number, segment in enumerate(SEGMENTS):
        with suppress(KeyError):
            stored = store.open(LAYOUT, segment)
            assert (stored.layer(0) == number).all()
            assert (stored.layer(1) == number + 10).all()
            found.add(number)
    return found


def write_hold(store: KVStore, until: float, written: float) -> None:
    """A hold of all segments that runs out at `until`, in a file last written at `written`."""
    value = {"job": "a job", "host": "another", "pid": 1, "until": until, "keys": KEYS}
    store.folder.write_json("holds/a.json", value)
    os.utime(store.folder.path("holds/a.json"), (written, written))
