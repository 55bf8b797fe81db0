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
from ragkv.models.attention import auto
from ragkv.models.decoder import KV


class PaddedLayers:
    """The layers over rows of tokens, some of which may be padding."""

    def __init__(self, memory: WorkspaceMemory):
        self._memory = memory
        self._side_streams: dict[torch.device, torch.cuda.Stream] = {}

    def run(
        self,
        span: range,
        hidden: Tensor,
        positions: Tensor,
        slots: Tensor,
        *,
        firsts: Tensor | None = None,
        power: float | None = None,
    ) -> Tensor:
        """Layers of one device over rows; the keys and values of all other tokens are in place.

        Parameters
        ----------
        hidden
            ``(1, rows, hidden)``.
        positions
            ``(rows,)``: that queries and keys are rotated to; -1 for padding, which comes first.
        slots
            ``(rows,)``, ascending: where each row's keys and values are written, which are the last ones that it
            attends to; -1 for padding.
        firsts
            ``(rows,)``: the slots of the first ones that it attends to; None if all rows attend from slot 0 on.
        power
            Also sum the attention weights, raised to this power, into `weights`.
        """
        angles = positions.clamp(min=0)
        targets = slots.where(slots >= 0, self._memory.tokens)  # padding goes to the spare slot
        for index in span:
            hidden = self._run_layer(index, hidden, angles, targets, slots, firsts, power)
        return hidden

    @property
    def weights(self) -> Tensor:
        """Attention weights of the last pass that was asked for them, ``(layers, heads, slots)``."""
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
        self,
        index: int,
        hidden: Tensor,
        angles: Tensor,
        targets: Tensor,
        slots: Tensor,
        firsts: Tensor | None,
        power: float | None,
    ) -> Tensor:
        memory = self._memory.layer(index)
        rotary = self._memory.rotary[index]

        def place(fresh: KV) -> KV:
            write(memory, fresh, rotary, angles, targets)
            keys, values = memory
            return keys[:, :, : self._memory.tokens], values[:, :, : self._memory.tokens]

        def attend(queries: Tensor, keys: Tensor, values: Tensor, _: Tensor, scaling: float) -> Tensor:
            if not self._memory.kernels:  # then nothing is padded, and there is one prompt
                return auto(queries, keys, values, slots, scaling)
            from ragkv.kernels.attention import position_causal
            from ragkv.kernels.scores import attention_scores

            if power is None:
                return position_causal(queries, keys, values, slots, scaling, firsts=firsts)
            attended, weights = attention_scores(queries, keys, values, slots, scaling, power, firsts=firsts)
            assert attended is not None
            self._weights_by_layer[index].copy_(weights)
            return attended

        layer = self._memory.model.model.layers[index]
        side_stream = self._side_stream(hidden)
        hidden, _ = decoder.run_layer(layer, hidden, angles, rotary, place, attend, side_stream=side_stream)
        return hidden

    def _side_stream(self, hidden: Tensor) -> torch.cuda.Stream | None:
        """A second stream while a graph is captured: the graph then runs the work on both side by side.

        None for a single token, whose queries, keys and values are computed by one kernel.
        """
        device = hidden.device
        if device.type != "cuda" or hidden.shape[1] == 1 or not torch.cuda.is_current_stream_capturing():
            return None
        if device not in self._side_streams:
            self._side_streams[device] = torch.cuda.Stream(device)
        return self._side_streams[device]
