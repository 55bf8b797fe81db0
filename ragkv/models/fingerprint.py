"""A model's identity: a hash of all that decides which keys and values it computes."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ragkv.models.limits import is_longrope, position_count
from ragkv.models.read_state import configuration, state_of
from ragkv.models.state import State

_PIECE = 1 << 24  # bytes that are copied from a GPU at a time
_SAMPLED = 256  # elements of each tensor that are compared to see whether it changed
_ROUNDING = 5e-7  # by how much frequencies of the rotary embedding differ between processors, relative


@dataclass(frozen=True)
class _Hashed:
    """A tensor when it was hashed."""

    stamp: tuple
    sample: Tensor
    digest: str

    def holds(self, tensor: Tensor) -> bool:
        """Whether this is the digest of that tensor, as far as its stamp and sample tell."""
        return self.stamp == _stamp(tensor) and _equal([self.sample], _samples([tensor]))


@dataclass(frozen=True)
class _Known:
    """A model when its fingerprint was computed."""

    state: State
    stamps: list[tuple]
    samples: list[Tensor]
    hashed: dict[int, _Hashed]  # by the tensor's id
    fingerprint: str


_models: WeakKeyDictionary[PreTrainedModel, _Known] = WeakKeyDictionary()  # a memo


def fingerprint(model: PreTrainedModel, *, fresh: bool = False) -> str:
    """The model's identity: a SHA-256 of its configuration, all bits of its tensors, and all else that decides.

    It depends neither on the device nor on where the model was loaded from. It is computed once. After a change, only
    the tensors that changed are hashed again. A tensor counts as changed if it lies elsewhere, if PyTorch counted a
    write in place, or if one of 256 elements that are spread over it differs. PyTorch does not count writes through
    ``.data`` and by fused optimisers: these go unnoticed if they spare the 256 elements of every tensor.

    Parameters
    ----------
    fresh
        Hash everything again, after a change that may have gone unnoticed.

    Raises
    ------
    ValueError
        Something decides what the model computes and cannot be known; the message says what to do.
    """
    state = state_of(model)
    tensors = {name: place.find() for name, place in state.tensors.items()}
    distinct = {id(tensor): tensor for tensor in tensors.values()}
    with torch.inference_mode(), torch._C.DisableTorchFunctionSubclass():
        stamps = [_stamp(tensor) for tensor in distinct.values()]
        samples = _samples(distinct.values())
        known = None if fresh else _models.get(model)
        if known is not None and known.state is state and known.stamps == stamps and _equal(known.samples, samples):
            return known.fingerprint
        hashed = _hash(distinct, known.hashed if known else {})
        frequencies = _frequencies(model, tensors)
    described = {
        name: [list(tensor.shape), str(tensor.dtype), frequencies.get(name, hashed[id(tensor)].digest)]
        for name, tensor in tensors.items()
    }
    everything = json.dumps([configuration(model), state.values, described], sort_keys=True)
    result = hashlib.sha256(everything.encode()).hexdigest()
    _models[model] = _Known(state, stamps, samples, hashed, result)
    return result


def _stamp(tensor: Tensor) -> tuple:
    """What PyTorch tells of a change without looking at the numbers."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.shape, tensor.stride(), tensor.dtype


def _samples(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The bytes of some elements of each tensor, on the host: one copy for each device and dtype."""
    groups: defaultdict[tuple, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.device, tensor.dtype].append(_sample(tensor))
    return [torch.cat(group).view(torch.uint8).cpu() for group in groups.values()]


def _sample(tensor: Tensor) -> Tensor:
    """Up to `_SAMPLED` elements of a tensor, flat, without copying them."""
    count = min(tensor.numel(), _SAMPLED)
    step = tensor.numel() // count if count else 1
    step -= step % 2 == 0  # odd, so that the elements are not all of one column
    flat = tensor if tensor.is_contiguous() else tensor.flatten()
    elements = flat.as_strided((count,), (step,))
    return elements.view(torch.uint8) if elements.element_size() == 1 else elements


def _equal(samples: list[Tensor], others: list[Tensor]) -> bool:
    return len(samples) == len(others) and all(map(torch.equal, samples, others))


def _hash(tensors: dict[int, Tensor], known: dict[int, _Hashed]) -> dict[int, _Hashed]:
    """Hash all tensors but those whose digest is known; keys are the tensors' ids."""
    changed = {key: tensor for key, tensor in tensors.items() if key not in known or not known[key].holds(tensor)}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        digests = dict(zip(changed, pool.map(_digest, changed.values()), strict=True))
    return {
        key: _Hashed(_stamp(tensor), _samples([tensor])[0], digests[key]) if key in changed else known[key]
        for key, tensor in tensors.items()
    }


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256()
    with torch._C.DisableTorchFunctionSubclass():
        for piece in tensor.detach().reshape(-1).contiguous().view(torch.uint8).split(_PIECE):
            digest.update(piece.cpu().numpy())
    return digest.hexdigest()


def _frequencies(model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, str]:
    """What stands for those buffers of the rotary embedding that the configuration determines.

    Their last bits depend on the processor that computed them, so their bits are not hashed. Those of LongRoPE also
    depend on the last prompt's length, and are computed again for each prompt.
    """
    rotary = model.model.rotary_emb
    with torch.device("cpu"):
        configured = type(rotary)(rotary.config)
        expected = [(name, buffer.clone()) for name, buffer in configured.named_buffers()]
        if is_longrope(model.config):
            beyond = torch.tensor([[position_count(model.config)]])
            configured(torch.empty(0), beyond)  # sets the frequencies of long prompts
            expected += configured.named_buffers()
    found = {}
    for name, frequencies in expected:
        tensor = tensors.get(f"model.rotary_emb.{name}")
        if tensor is None or (tensor.shape, tensor.dtype) != (frequencies.shape, frequencies.dtype):
            continue
        if torch.allclose(tensor.cpu(), frequencies, rtol=_ROUNDING, atol=0):
            found[f"model.rotary_emb.{name}"] = "as configured"
    return found
