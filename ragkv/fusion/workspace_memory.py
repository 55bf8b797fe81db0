"""Keys and values of one prompt at a time at addresses that stay, and a model's layers over them, in place.

Rows at position -1 do not count: they see nothing, and what they leave is read by none. So rows can be rounded up.
"""

import sys
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ragkv.fusion.cache import write
from ragkv.loading.processes import ReadProcesses
from ragkv.loading.transfer import divided
from ragkv.models import decoder
from ragkv.models.attention import auto, has_kernel, triton
from ragkv.models.checks import check_model
from ragkv.models.decoder import KV
from ragkv.models.out_of_memory import explained
from ragkv.models.rotary import Rotary
from ragkv.prompt import Prompt
from ragkv.store import Layout


class WorkspaceMemory:
    """Where a model's keys and values lie, of one prompt after the other.

    Parameters
    ----------
    tokens
        The longest prompt, with what is decoded behind it.

    Attributes
    ----------
    layers
        Keys and values, ``(1, kv_heads, tokens + 1, head_dim)`` each; the last slot is for rows that do not count.
    processes
        What reads stored segments for each GPU, once there are some to read.
    kernels
        Whether the package's own kernels run on all layers; they know rows that do not count.
    """

    def __init__(self, model: PreTrainedModel, tokens: int):
        check_model(model)
        self.model, self.tokens = model, tokens
        self.devices = decoder.devices(model)
        self.rotary = Rotary.of(model, tokens)
        self.layers: list[KV] = []
        config, dtype = model.config, model.dtype
        for layer, device in zip(model.model.layers, self.devices, strict=True):
            shape = (2, 1, config.num_key_value_heads, tokens + 1, layer.self_attn.head_dim)
            with explained(f"room for {tokens} tokens", device, "make the workspace for shorter prompts"):
                keys, values = torch.zeros(shape, dtype=dtype, device=device)  # finite: no NaN may be near attention
            self.layers.append((keys, values))
        self.kernels = all(has_kernel(keys) for keys, _ in self.layers)
        self._attend = triton if self.kernels else auto
        gpus = {device for device in self.devices if device.type == "cuda"}
        self.processes = {gpu: ReadProcesses(beside=len(gpus) - 1) for gpu in gpus if sys.platform == "linux"}
        self._layouts: dict[str, Layout] = {}
        self._branches: dict[torch.device, torch.cuda.Stream] = {}

    @property
    def weights(self) -> Tensor:
        """What the last pass that was asked for it attended to, ``(layers, heads, tokens)``."""
        first, *others = self._weights
        return torch.cat((first, *(part.to(first.device) for part in others))) if others else first

    @cached_property
    def _weights(self) -> list[Tensor]:
        """The same, a part for each GPU's layers."""
        heads, spans = self.model.config.num_attention_heads, self.spans(range(len(self.layers)))
        return [torch.zeros(len(span), heads, self.tokens, device=self.devices[span.start]) for span in spans]

    @cached_property
    def _weights_by_layer(self) -> list[Tensor]:
        return [weights for part in self._weights for weights in part]

    def check(self, model: PreTrainedModel, prompt: Prompt) -> None:
        """
        Raises
        ------
        ValueError
            It is another model's room, or too small for this prompt.
        """
        if model is not self.model:
            raise ValueError("the workspace was made for another model: make one for this model")
        if len(prompt.ids) > self.tokens:
            raise ValueError(
                f"the workspace has room for {self.tokens} tokens, the prompt has {len(prompt.ids)}: make a larger one"
            )

    def layout(self, format: str) -> Layout:
        """How the model's segments are stored; found once."""
        if format not in self._layouts:
            self._layouts[format] = Layout.of(self.model, format)
        return self._layouts[format]

    def cache(self, tokens: int) -> list[KV]:
        """Keys and values of the first `tokens` positions, without copying."""
        return [(keys.narrow(2, 0, tokens), values.narrow(2, 0, tokens)) for keys, values in self.layers]

    def spans(self, layers: range) -> list[range]:
        """The layers, divided where they change from one GPU to the next; no span where there are none."""
        return divided(layers, lambda i: self.devices[i] != self.devices[i - 1])

    def _through(self, span: range, hidden: Tensor, positions: Tensor, power: float | None = None) -> Tensor:
        """Layers of one device over rows, ``(1, rows, hidden)``, at their positions; with `power`, their `weights`."""
        angles, slots = positions.clamp(min=0), positions.where(positions >= 0, self.tokens)
        for index in span:
            hidden = self._layer(index, hidden, positions, angles, slots, power)
        return hidden

    def _layer(
        self, index: int, hidden: Tensor, positions: Tensor, angles: Tensor, slots: Tensor, power: float | None
    ) -> Tensor:
        layer, keys_values = self.model.model.layers[index], self.layers[index]
        attention = layer.self_attn
        normed = decoder.norm(layer.input_layernorm, hidden)
        branch = self._branch(hidden.device)
        with torch.cuda.stream(branch):
            write(keys_values, decoder.keys_values(attention, normed), self.rotary, angles, slots)
        queries = self.rotary(decoder.queries(attention, normed), angles)
        if branch is not None:
            torch.cuda.current_stream(hidden.device).wait_stream(branch)
        keys, values = (states[:, :, : self.tokens] for states in keys_values)
        if power is None:
            attended = self._attend(queries, keys, values, positions, attention.scaling)
        else:
            from ragkv.kernels.scores import attention_scores

            attended, weights = attention_scores(queries, keys, values, positions, attention.scaling, power)
            self._weights_by_layer[index].copy_(weights)
        return decoder.finish(layer, hidden, attended)

    def _branch(self, device: torch.device) -> torch.cuda.Stream | None:
        """In a graph, where what is captured runs beside what follows; small products leave a GPU half empty."""
        if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            return None
        if device not in self._branches:
            self._branches[device] = torch.cuda.Stream(device)
        self._branches[device].wait_stream(torch.cuda.current_stream(device))
        return self._branches[device]
