"""Quantised segments in memory, copied to a GPU as they are stored and unpacked there, under Triton's interpreter."""

import pytest
import torch
from helpers import Immediately, memory_store, random_ids

pytest.importorskip("triton", reason="Triton is not installed")

from ragkv import KVStore
from ragkv.loading import transfer
from ragkv.loading.layer_groups import layer_groups
from ragkv.loading.prefetch import PrefetchingStore
from ragkv.loading.segments import SegmentInMemory
from ragkv.prompt import Segment
from ragkv.store import Layout
from ragkv.store.quantize import CODECS

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the compiled kernels")
CPU = torch.device("cpu")
LAYERS = 7


@pytest.mark.parametrize("head_dim", [8, 16])  # layers of 16 times as many bytes, and others
@pytest.mark.parametrize("from_files", [0, 1, 3], ids=["all in memory", "one from its file", "all from files"])
@pytest.mark.parametrize("format", CODECS)
def test_packed_segments_are_staged_as_they_are_unpacked_on_the_host(rng, monkeypatch, format, from_files, head_dim):
    store = KVStore(memory_store().url, format=format)
    layout = Layout("model", LAYERS, kv_heads=2, head_dim=head_dim, dtype=torch.float32, format=format)
    segments = [Segment(tuple(random_ids(rng, length)), (1,)) for length in (4, 33, 16)]
    for segment in segments:
        tokens = len(segment.ids)
        store.write(layout, segment, torch.randn(LAYERS, 2, 2, tokens, head_dim), torch.rand(tokens))
    ahead = PrefetchingStore(store, layout)
    ahead.prefetch(segments[from_files:])

    monkeypatch.setattr(transfer, "kernels_run", lambda device: True)
    monkeypatch.setattr(transfer, "_copies_directly", lambda segment: isinstance(segment, SegmentInMemory))
    opened = [ahead.open(layout, segment) for segment in segments]
    groups = layer_groups(range(LAYERS), [CPU] * LAYERS)
    copying = transfer.Transfer(opened, groups, CPU, stream=Immediately())
    staged = {}
    copying.start(lambda group: staged.update({group: [part[: len(group)].clone() for part in copying.staged]}))
    for index in range(LAYERS):
        copying.layer(index)
    assert list(staged) == groups
    for group, parts in staged.items():
        for segment, part in zip(segments, parts, strict=True):
            stored = store.open(layout, segment)
            assert torch.equal(part, torch.stack([stored.layer(index) for index in group]))
