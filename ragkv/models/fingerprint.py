"""A model's identity: a hash of its configuration and weights."""

import hashlib
import json
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
)

_fingerprints: WeakKeyDictionary[PreTrainedModel, tuple[tuple, str]] = WeakKeyDictionary()  # only a memo


def fingerprint(model: PreTrainedModel) -> str:
    """The model's identity: a hash of its configuration and of every weight's bits.

    It does not depend on the device or on where the model came from; changed weights change it. It is computed once
    per model and again when its weights were replaced or changed in place; PyTorch keeps no record of changes in place
    through ``.data``: load the model again after such.
    """
    state = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())
    remembered = _fingerprints.get(model)
    if remembered is None or remembered[0] != state:
        _fingerprints[model] = remembered = (state, _fingerprint(model))
    return remembered[1]


_CONFIG = (
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim hidden_act max_position_embeddings rms_norm_eps rope_parameters attention_bias mlp_bias"
).split()


def _fingerprint(model: PreTrainedModel) -> str:
    config = model.config.to_dict()
    digest = hashlib.sha256(json.dumps([config.get(name) for name in _CONFIG], sort_keys=True).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {_checksum(weight.detach())};".encode())
    return digest.hexdigest()


def _checksum(weight: Tensor) -> int:
    """A sum over all bits of a tensor, each place weighted differently; wraps at 64 bits, on any device alike."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = weight.contiguous().view(-1).view(integers[weight.element_size()])
    total = 0
    for part, start in zip(bits.split(1 << 24), range(0, bits.numel(), 1 << 24), strict=True):
        place = torch.arange(start, start + part.numel(), device=part.device) * 0x9E3779B1 + 0x7F4A7C15
        total += int(((part.long() + (1 << 33)) * (place | 1)).sum())
    return total % (1 << 64)
