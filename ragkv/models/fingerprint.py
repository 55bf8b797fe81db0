"""A model's identity: a hash of its configuration and weights."""

import hashlib
import json
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

_CONFIG = (  # what is hashed of the configuration
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim hidden_act max_position_embeddings rms_norm_eps rope_parameters attention_bias mlp_bias"
).split()
_BLOCK = 1 << 24  # numbers that are summed at a time

# a memo: the addresses and versions of the weights that a model was hashed with, and the hash
_fingerprints: WeakKeyDictionary[PreTrainedModel, tuple[tuple, str]] = WeakKeyDictionary()


def fingerprint(model: PreTrainedModel) -> str:
    """The model's identity: a hash of its configuration and of every weight's bits.

    It depends neither on the device nor on where the model was loaded from. It is computed once per model, and again
    if weights were replaced or changed in place. PyTorch does not notice changes through ``.data``, so load the model
    again after such a change.
    """
    state = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())
    remembered = _fingerprints.get(model)
    if remembered is None or remembered[0] != state:
        _fingerprints[model] = remembered = (state, _fingerprint(model))
    return remembered[1]


def _fingerprint(model: PreTrainedModel) -> str:
    config = model.config.to_dict()
    digest = hashlib.sha256(json.dumps([config.get(name) for name in _CONFIG], sort_keys=True).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {_checksum(weight.detach())};".encode())
    return digest.hexdigest()


def _checksum(weight: Tensor) -> int:
    """A weighted sum over all bits of a tensor. Each index has its own odd weight; the sum wraps at 64 bits."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    numbers = weight.contiguous().view(-1).view(integers[weight.element_size()])
    total = 0
    for start, block in zip(range(0, numbers.numel(), _BLOCK), numbers.split(_BLOCK), strict=True):
        index = torch.arange(start, start + block.numel(), device=block.device)
        factor = (index * 0x9E3779B1 + 0x7F4A7C15) | 1
        total += int(((block.long() + (1 << 33)) * factor).sum())
    return total % (1 << 64)
