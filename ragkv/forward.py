"""The model's layers over one prompt: some tokens computed afresh, over the keys and values of all of them."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from time import perf_counter

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ragkv import decoder
from ragkv.ahead import parts_of
from ragkv.attention import Backend, attention_weights
from ragkv.cache import KV, place, write
from ragkv.loading import ReusedKV
from ragkv.prompt import Prompt

Choose = Callable[[nn.Module, Tensor, KV, Tensor], Tensor]
Watch = Callable[[int, Tensor, KV, Tensor, float], None]


class Clock:
    """Seconds by stage, as the GPU lives through them or, without one, the host; a stage within another counts once.

    Parameters
    ----------
    devices
        The GPU whose time counts; of none or several, which have no time in common, it is the host's.
    """

    def __init__(self, devices: Collection[torch.device] = ()):
        self._on_gpu = len(devices) == 1 and next(iter(devices)).type == "cuda"
        self._spans: list[list] = []  # stage, the span around it, start, end
        self._around: int | None = None

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        around, span = self._around, [stage, self._around, self._now(), None]
        self._around = len(self._spans)
        self._spans.append(span)
        yield
        span[3], self._around = self._now(), around

    def seconds(self) -> dict[str, float]:
        """By stage; a GPU must have finished."""
        lengths = [start.elapsed_time(end) / 1e3 if self._on_gpu else end - start for *_, start, end in self._spans]
        total = dict.fromkeys((stage for stage, *_ in self._spans), 0.0)
        for (stage, around, *_), length in zip(self._spans, lengths, strict=True):
            total[stage] += length
            if around is not None:
                total[self._spans[around][0]] -= length
        return total

    def _now(self):  # type: ignore[no-untyped-def]
        if not self._on_gpu:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Forward:
    """The model's layers over one prompt, each over its fused keys and values.

    Attributes
    ----------
    layers
        By layer, rotated keys, and values, of all tokens, ``(1, kv_heads, tokens, head_dim)`` each.
    """

    def __init__(self, model: PreTrainedModel, prompt: Prompt, reuse: ReusedKV, attend: Backend, clock: Clock):
        self.model, self.prompt, self.reuse, self.attend, self.clock = model, prompt, reuse, attend, clock
        self.rotary = self._rotary()
        self.ids = prompt.tensor.to(model.model.embed_tokens.weight.device, non_blocking=True)
        self.layers: list[KV] = []

    def start(self, layers: range, *, prefix_only: bool = False) -> None:
        """Begin to bring the reused keys and values of these layers to where they are needed; the first layers' first.

        Parameters
        ----------
        prefix_only
            In these layers nothing else is reused.
        """
        if prefix_only:  # so little is brought when it is asked for
            return
        devices = decoder.devices(self.model)
        parts = parts_of(layers, devices)
        for device in dict.fromkeys(devices):
            self.reuse.start([part for part in parts if devices[part.start] == device], device)

    def embed(self, active: Tensor) -> Tensor:
        """The input of the first layer, ``(1, active, hidden)``."""
        return self.model.model.embed_tokens(self.ids[active.to(self.ids.device)])[None]

    def through(self, layers: range, hidden: Tensor, active: Tensor, watch: Watch | None = None) -> Tensor:
        """Some layers for the tokens at the positions `active`, all of which go on."""
        for index in layers:
            hidden, active = self.layer(index, hidden, active, watch=watch)
        return hidden

    def layer(
        self, index: int, hidden: Tensor, active: Tensor, *, choose: Choose | None = None, watch: Watch | None = None
    ) -> tuple[Tensor, Tensor]:
        """One layer for the tokens at the positions `active`; its output, and the positions that went on.

        Parameters
        ----------
        choose
            Says, once keys and values are computed, which rows of `active` go on.
        watch
            Sees, once attention is computed, the queries of those that went on, and all keys and values.
        """
        layer = self.model.model.layers[index]
        attention = layer.self_attn
        device = attention.q_proj.weight.device
        hidden, active = hidden.to(device), active.to(device)
        normed = decoder.norm(layer.input_layernorm, hidden)
        fresh = decoder.keys_values(attention, normed)
        fused = self._fuse(index, fresh, active)
        if choose is not None:
            kept = choose(attention, normed, (self.rotary(fresh[0], active), fresh[1]), active).to(device)
            hidden, normed, active = hidden[:, kept], normed[:, kept], active[kept]
        queries = self.rotary(decoder.queries(attention, normed), active)
        attended = self.attend(queries, *fused, active, attention.scaling)
        if watch is not None:
            watch(index, queries, fused, active, attention.scaling)
        return decoder.finish(layer, hidden, attended), active

    def look(self, rows: Tensor, power: float = 1.0) -> Tensor:
        """What the question and the document's tokens `rows` attend to when only they are computed afresh.

        Returns
        -------
        Tensor
            ``(layers, heads, document)``, in float32: attention weights, raised to `power` and summed over those that
            attend.
        """
        span, asked = self.prompt.document_span, self.prompt.question_span
        question = torch.arange(asked.start, asked.stop, device=self.ids.device)
        active = torch.cat((rows.to(self.ids.device).sort().values + span.start, question))
        return self._attention(self.embed(active), active, power)[:, :, span.start : span.stop]

    def _attention(self, hidden: Tensor, active: Tensor, power: float) -> Tensor:
        """The weights' sums over all tokens, ``(layers, heads, tokens)``."""
        seen: list[Tensor] = []

        def watch(index: int, queries: Tensor, fused: KV, positions: Tensor, scaling: float) -> None:
            seen.append(attention_weights(queries, fused[0], positions, scaling, power))

        self.through(range(self.model.config.num_hidden_layers), hidden, active, watch)
        return torch.stack([weights.to(seen[0].device) for weights in seen])

    def _rotary(self) -> decoder.Rotary:
        return decoder.Rotary.of(self.model, len(self.prompt.ids))

    def _fuse(self, index: int, fresh: KV, active: Tensor) -> KV:
        """Fresh keys and values over the reused ones; a layer that was passed before takes the new ones in."""
        if index < len(self.layers):
            write(self.layers[index], fresh, self.rotary, active, active)
        else:
            stored = self._stored(index, len(active), active.device)
            self.layers.append(place(stored, fresh, active, self.rotary, len(self.prompt.ids)))
        return self.layers[index]

    def _stored(self, index: int, computed: int, device: torch.device) -> KV | None:
        """Stored keys (before rotation) and values of the positions that are not all computed afresh in this layer."""
        behind_prefix = len(self.prompt.ids) - len(self.prompt.prefix)
        load = self.reuse.prefix if computed >= behind_prefix else self.reuse.all
        with self.clock("load"):
            return load(index, device)
