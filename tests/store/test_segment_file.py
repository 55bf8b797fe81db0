"""The bytes of a segment's file are those that the safetensors library would write."""

import json

import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from ragkv.prompt import Segment
from ragkv.store import Layout
from ragkv.store.checksums import Checksums
from ragkv.store.layout import layer_name
from ragkv.store.quantize import CODECS, FORMATS, quantize
from ragkv.store.segment_file import encode


@given(
    format=st.sampled_from(list(FORMATS)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    layers=st.integers(1, 12),
    tokens=st.integers(1, 9),
    keyed=st.booleans(),
)
def test_a_file_is_what_safetensors_writes(format, dtype, layers, tokens, keyed):
    segment = Segment(tuple(range(tokens)), (1,))
    layout = Layout("0" * 64, layers, kv_heads=3, head_dim=6, dtype=dtype, format=format)
    states = torch.randn(layers, 2, 3, tokens, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensors = {"surprisal": torch.rand(tokens)}
    if format in CODECS:
        states, tensors["key_scales"], tensors["value_scales"] = quantize(states, format)
    tensors |= {layer_name(index): layer for index, layer in enumerate(states)}

    checksums = Checksums(b"a key of thirty-two bytes, or more") if keyed else Checksums()
    found = encode(layout.identity(segment), tensors, checksums)

    header = json.loads(found[8 : 8 + int.from_bytes(found[:8], "little")])
    assert found == safetensors.torch.save(tensors, header["__metadata__"])
    assert {name: tensor.shape for name, tensor in safetensors.torch.load(found).items()} == {
        name: tensor.shape for name, tensor in tensors.items()
    }
