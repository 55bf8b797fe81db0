"""The memory that the keys and values of prefills lie in: their own, or a workspace's."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ragkv.loading.workers import ReadWorkers
from ragkv.models import decoder
from ragkv.models.decoder import KV
from ragkv.models.rotary import Rotary


class Memory(Protocol):
    """Keys and values of one or several prompts, layer by layer. Those of several prompts lie end to end.

    Attributes
    ----------
    devices
        The device of each layer.
    rotary
        The rotary embedding of each layer, for as many positions as there is memory for.
    preallocated
        Whether all layers have their memory already.
    workers
        For each GPU, the worker processes that read stored segments for it. May be empty.
    """

    model: PreTrainedModel
    devices: list[torch.device]
    rotary: list[Rotary]
    preallocated: bool
    workers: Mapping[torch.device, ReadWorkers]

    def layer(self, index: int) -> KV:
        """A layer's keys and values, ``(1, kv_heads, slots, head_dim)`` each, with at least a slot per token."""

    def replace(self, index: int, remaining: Sequence[KV], extents: Sequence[range]) -> list[KV]:
        """Replace the keys and values of a layer by what remains of each prompt, as no layer needs them any more.

        Parameters
        ----------
        remaining
            Of each prompt, keys and values, ``(1, kv_heads, kept, head_dim)`` each.
        extents
            The slots of each prompt.

        Returns
        -------
        list
            `remaining`, where it is kept.
        """


class OwnMemory:
    """Memory of prefills that nothing else uses. A layer's is allocated when the layer is first asked for.

    It may be asked for on a stream that copies stored keys and values. The layers themselves are computed on the stream
    that is current when this object is made.

    Parameters
    ----------
    lengths
        The number of tokens of each prompt.
    """

    preallocated: bool = False

    def __init__(self, model: PreTrainedModel, lengths: Sequence[int]):
        self.model = model
        self.devices = decoder.devices(model)
        self.rotary = Rotary.of(model, max(lengths))
        self.workers: Mapping[torch.device, ReadWorkers] = {}
        self._tokens = sum(lengths)
        # The attention of several prompts may read, and mask, another prompt's slots before they are written. A NaN
        # there would spread.
        self._allocated = torch.empty if len(lengths) == 1 else torch.zeros
        self._layers: dict[int, KV] = {}
        gpus = {device for device in self.devices if device.type == "cuda"}
        self._computing = {gpu: torch.cuda.current_stream(gpu) for gpu in gpus}

    def layer(self, index: int) -> KV:
        """A layer's keys and values, ``(1, kv_heads, tokens, head_dim)`` each."""
        if index not in self._layers:
            self._layers[index] = self._allocate(index), self._allocate(index)
        return self._layers[index]

    def replace(self, index: int, remaining: Sequence[KV], extents: Sequence[range]) -> list[KV]:
        """Free a layer's memory; what remains has memory of its own."""
        del self._layers[index]
        return list(remaining)

    def _allocate(self, index: int) -> Tensor:
        config, device = self.model.config, self.devices[index]
        head_dim = self.model.model.layers[index].self_attn.head_dim
        shape = (1, config.num_key_value_heads, self._tokens, head_dim)
        states = self._allocated(shape, dtype=self.model.dtype, device=device)
        if device in self._computing:  # not to be used again before that stream is done with it
            states.record_stream(self._computing[device])
        return states
