"""The model's layers over one prompt: some tokens computed afresh, over the keys and values of all of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ragkv import decoder
from ragkv.attention import Backend, attention_weights
from ragkv.cache import KV, place
from ragkv.eviction import Eviction, evict
from ragkv.loading import ReusedKV
from ragkv.prompt import Prompt

Choose = Callable[[nn.Module, Tensor, KV, Tensor], Tensor]
Watch = Callable[[Tensor, Tensor, Tensor, float], None]


class Clock:
    """Seconds by stage, on the host's clock; a stage within another does not count twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start, counted = perf_counter(), sum(self.seconds.values())
        yield
        inner = sum(self.seconds.values()) - counted
        self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - start - inner


class Forward:
    """The model's layers over one prompt, each over its fused keys and values."""

    def __init__(self, model: PreTrainedModel, prompt: Prompt, reuse: ReusedKV, attend: Backend, clock: Clock):
        self.model, self.prompt, self.reuse, self.attend, self.clock = model, prompt, reuse, attend, clock
        self.rotary = decoder.Rotary(model, len(prompt.ids))
        self.ids = torch.tensor(prompt.ids, device=model.model.embed_tokens.weight.device)
        self.layers: list[KV] = []  # rotated keys, and values, of all tokens

    def embed(self, active: Tensor) -> Tensor:
        """The input of the first layer, ``(1, active, hidden)``."""
        return self.model.model.embed_tokens(self.ids[active.to(self.ids.device)])[None]

    def layer(
        self,
        index: int,
        hidden: Tensor,
        active: Tensor,
        *,
        choose: Choose | None = None,
        watch: Watch | None = None,
        eviction: Eviction | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One layer for the tokens at the positions `active`; its output, and the positions that went on.

        Parameters
        ----------
        choose
            Says, once keys and values are computed, which rows of `active` go on.
        watch
            Sees the queries of those that went on, and all keys.
        eviction
            Says what stays of the layer's keys and values afterwards.
        """
        layer = self.model.model.layers[index]
        attention = layer.self_attn
        device = attention.q_proj.weight.device
        hidden, active = hidden.to(device), active.to(device)
        normed = decoder.norm(layer.input_layernorm, hidden)
        keys, values = decoder.keys_values(attention, normed)
        fresh = self.rotary(keys, active), values
        fused = self._fuse(index, fresh, active)
        if choose is not None:
            kept = choose(attention, normed, fresh, active).to(device)
            hidden, normed, active = hidden[:, kept], normed[:, kept], active[kept]
        queries = self.rotary(decoder.queries(attention, normed), active)
        if watch is not None:
            watch(queries, fused[0], active, attention.scaling)
        attended = self.attend(queries, *fused, active, attention.scaling)
        if eviction is not None:
            asked = int((active >= self.prompt.question_span.start).sum())
            window, where = queries[:, :, -asked:], active[-asked:]
            self.layers[index] = evict(eviction, self.prompt, fused, window, where, attention.scaling)
        return decoder.finish(layer, hidden, attended), active

    def _fuse(self, index: int, fresh: KV, active: Tensor) -> KV:
        """Fresh keys and values over the reused ones; a layer that was passed before takes the new ones in."""
        if index < len(self.layers):
            for states, new in zip(self.layers[index], fresh, strict=True):
                states.index_copy_(2, active, new)
            return self.layers[index]
        with self.clock("load"):
            stored = _stored(self.reuse, index, self.prompt, active)
        self.layers.append(place(stored, fresh, active, self.rotary, len(self.prompt.ids)))
        return self.layers[index]

    def look(self, rows: Tensor, power: float = 1.0) -> Tensor:
        """What the question and the document's tokens `rows` attend to when only they are computed afresh.

        Returns
        -------
        Tensor
            ``(layers, heads, document)``, in float32: attention weights, raised to `power` and summed over those that
            attend.
        """
        span, question = self.prompt.document_span, torch.tensor(self.prompt.question_span)
        active = torch.cat((rows.cpu().sort().values + span.start, question))
        hidden, seen = self.embed(active), []

        def watch(queries: Tensor, keys: Tensor, positions: Tensor, scaling: float) -> None:
            seen.append(attention_weights(queries, keys, positions, scaling, power)[:, span.start : span.stop])

        for index in range(self.model.config.num_hidden_layers):
            hidden, active = self.layer(index, hidden, active, watch=watch)
        return torch.stack([weights.to(seen[0].device) for weights in seen])


def _stored(reuse: ReusedKV, index: int, prompt: Prompt, active: Tensor) -> KV | None:
    """Stored keys (before rotation) and values of the positions that are not all computed afresh in this layer."""
    behind_prefix = len(prompt.ids) - len(prompt.prefix)
    load = reuse.prefix if len(active) >= behind_prefix else reuse.all
    return load(index, active.device)
