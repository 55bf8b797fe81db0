"""Memory for the keys and values of one prompt or batch at a time, at addresses that never change."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from transformers import PreTrainedModel

from ragkv.loading.layer_groups import device_spans
from ragkv.loading.workers import ReadWorkers
from ragkv.models import decoder
from ragkv.models.attention import has_kernel
from ragkv.models.checks import check_model
from ragkv.models.decoder import KV
from ragkv.models.fingerprint import fingerprint
from ragkv.models.limits import steady_positions
from ragkv.models.out_of_memory import explained
from ragkv.models.rotary import Rotary
from ragkv.prompt import Prompt
from ragkv.store import Layout


class WorkspaceMemory:
    """A model's keys and values, for one prompt after the other. It is lent to prefills, see `ragkv.fusion.memory`.

    Parameters
    ----------
    tokens
        The longest prompt, including what is decoded after it, or all prompts of a batch together.

    Attributes
    ----------
    positions
        How many tokens a prompt and what is decoded after it can have here: `tokens`, or less if the model has other
        frequencies behind these positions, or attends through a window.
    devices
        The device of each layer.
    kernels
        Whether the package's own kernels run on all layers. Only they know padding.
    workers
        For each GPU, the worker processes that read stored segments for it. They start when they are first needed.
    """

    preallocated: bool = True

    def __init__(self, model: PreTrainedModel, tokens: int):
        check_model(model)
        self.model = model
        self._fingerprint = fingerprint(model)
        self.tokens = tokens
        self.positions = min(tokens, steady_positions(model) or tokens)
        self.devices = decoder.devices(model)
        self.rotary = Rotary.of(model, self.positions)
        self._layers = [self._allocate(index) for index in range(len(self.devices))]
        self.kernels = all(has_kernel(keys) for keys, _ in self._layers)
        gpus = {device for device in self.devices if device.type == "cuda"}
        self.workers: Mapping[torch.device, ReadWorkers] = (
            {gpu: ReadWorkers(others=len(gpus) - 1) for gpu in gpus} if sys.platform == "linux" else {}
        )
        self._checking = [torch.cuda.Stream(gpu) for gpu in gpus]  # on which `check_unchanged` reads weights
        self._layouts: dict[str, Layout] = {}

    def check_model(self, model: PreTrainedModel) -> None:
        """Refuse another model. It is called before a prefill, and `check_unchanged` looks at the model as it is now.

        Raises
        ------
        ValueError
            The workspace was made for another model.
        """
        if model is not self.model:
            raise ValueError("the workspace was made for another model: make one for this model")
        for stream in self._checking:
            stream.wait_stream(torch.cuda.current_stream(stream.device))

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that are too long, together, to be prefilled at once.

        Raises
        ------
        ValueError
            The workspace is too small.
        """
        tokens = sum(len(prompt.ids) for prompt in prompts)
        if tokens > self.tokens:
            needed, advice = f"the prompt has {tokens}", "make a larger one"
            if len(prompts) > 1:
                needed = f"the {len(prompts)} prompts have {tokens} together"
                advice += ", or prefill fewer prompts at once"
            raise ValueError(f"the workspace has room for {self.tokens} tokens, {needed}: {advice}")

    def check_unchanged(self) -> None:
        """Refuse a model that has changed since the workspace was made.

        A prefill asks once its kernels have been started: the host would otherwise only wait for the GPU, and the check
        takes as long as a small prefill. Weights are read on a stream of its own, beside the prefill.

        Raises
        ------
        ValueError
            The model's weights, configuration or modules have changed.
        """
        with ExitStack() as streams:
            for stream in self._checking:
                streams.enter_context(torch.cuda.stream(stream))
            now = fingerprint(self.model)
        if now != self._fingerprint:
            raise ValueError("the model has changed since the workspace was made: make a new one")

    def layout(self, format: str) -> Layout:
        """The layout of the model's segments in a store of this format; worked out once."""
        if format not in self._layouts:
            self._layouts[format] = Layout.of(self.model, format)
        return self._layouts[format]

    def layer(self, index: int) -> KV:
        """A layer's keys and values, ``(1, kv_heads, tokens + 1, head_dim)`` each; the last slot is for padding."""
        return self._layers[index]

    def replace(self, index: int, remaining: Sequence[KV], extents: Sequence[range]) -> list[KV]:
        """Move what remains of each prompt to the first of its slots."""
        return [self._move(index, states, extent) for states, extent in zip(remaining, extents, strict=True)]

    def cache(self, tokens: int) -> list[KV]:
        """Keys and values of the first `tokens` positions, without copying."""
        return [(keys[:, :, :tokens], values[:, :, :tokens]) for keys, values in self._layers]

    def spans(self, layers: range) -> list[range]:
        """The layers in spans, each on one device."""
        return device_spans(layers, self.devices)

    def _move(self, index: int, remaining: KV, extent: range) -> KV:
        count = remaining[0].shape[2]
        moved = [states.narrow(2, extent.start, count) for states in self._layers[index]]
        for target, source in zip(moved, remaining, strict=True):
            target.copy_(source)
        keys, values = moved
        return keys, values

    def _allocate(self, index: int) -> KV:
        config, device = self.model.config, self.devices[index]
        head_dim = self.model.model.layers[index].self_attn.head_dim
        shape = (2, 1, config.num_key_value_heads, self.tokens + 1, head_dim)
        with explained(f"room for {self.tokens} tokens", device, "make the workspace for shorter prompts"):
            # zeros, as masked attention would still spread a NaN of memory that was never written
            keys, values = torch.zeros(shape, dtype=self.model.dtype, device=device)
        return keys, values
