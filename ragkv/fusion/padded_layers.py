"""A model's layers over a few tokens, in place in a workspace's memory.

Rows at position -1 are padding: they attend to nothing and their output is never read. So the number of rows can be
rounded up.
"""

from functools import cached_property

import torch
from torch import Tensor

from ragkv.fusion.cache import write
from ragkv.fusion.workspace_memory import WorkspaceMemory
from ragkv.models import decoder
from ragkv.models.attention import auto, triton
from ragkv.models.decoder import KV


class PaddedLayers:
    """The layers over rows of tokens, some of which may be padding."""

    def __init__(self, memory: WorkspaceMemory):
        self._memory = memory
        self._attention = triton if memory.kernels else auto  # only the package's own kernel knows padding
        self._side_streams: dict[torch.device, torch.cuda.Stream] = {}

    def run(self, span: range, hidden: Tensor, positions: Tensor, power: float | None = None) -> Tensor:
        """Layers of one device over rows; the keys and values of all other tokens are in place.

        Parameters
        ----------
        hidden
            ``(1, rows, hidden)``.
        positions
            ``(rows,)``, ascending: -1 for padding.
        power
            Also sum the attention weights, raised to this power, into `weights`.
        """
        angles = positions.clamp(min=0)
        slots = positions.where(positions >= 0, self._memory.tokens)  # padding goes to the spare slot
        for index in span:
            hidden = self._run_layer(index, hidden, positions, angles, slots, power)
        return hidden

    @property
    def weights(self) -> Tensor:
        """Attention weights of the last pass that was asked for them, ``(layers, heads, tokens)``."""
        first, *others = self._weights_by_gpu
        return torch.cat((first, *(part.to(first.device) for part in others))) if others else first

    @cached_property
    def _weights_by_gpu(self) -> list[Tensor]:
        """The same, one tensor for each GPU's layers."""
        memory, heads = self._memory, self._memory.model.config.num_attention_heads
        return [
            torch.zeros(len(span), heads, memory.tokens, device=memory.devices[span.start])
            for span in memory.spans(range(len(memory.devices)))
        ]

    @cached_property
    def _weights_by_layer(self) -> list[Tensor]:
        return [weights for part in self._weights_by_gpu for weights in part]

    def _run_layer(
        self, index: int, hidden: Tensor, positions: Tensor, angles: Tensor, slots: Tensor, power: float | None
    ) -> Tensor:
        memory = self._memory.layer(index)
        rotary = self._memory.rotary[index]

        def place(fresh: KV) -> KV:
            write(memory, fresh, rotary, angles, slots)
            keys, values = memory
            return keys[:, :, : self._memory.tokens], values[:, :, : self._memory.tokens]

        def attend(queries: Tensor, keys: Tensor, values: Tensor, _: Tensor, scaling: float) -> Tensor:
            if power is None:
                return self._attention(queries, keys, values, positions, scaling)
            from ragkv.kernels.scores import attention_scores

            attended, weights = attention_scores(queries, keys, values, positions, scaling, power)
            assert attended is not None
            self._weights_by_layer[index].copy_(weights)
            return attended

        layer = self._memory.model.model.layers[index]
        side_stream = self._side_stream(hidden.device)
        hidden, _ = decoder.run_layer(layer, hidden, angles, rotary, place, attend, side_stream=side_stream)
        return hidden

    def _side_stream(self, device: torch.device) -> torch.cuda.Stream | None:
        """A second stream while a graph is captured: the graph then runs the work on both side by side."""
        if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            return None
        if device not in self._side_streams:
            self._side_streams[device] = torch.cuda.Stream(device)
        return self._side_streams[device]
