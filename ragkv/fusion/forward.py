"""The model's layers over one prompt: some tokens computed afresh, over the keys and values of all of them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ragkv.fusion.cache import place, write
from ragkv.fusion.clock import Clock
from ragkv.loading.reused import ReusedKV
from ragkv.loading.transfer import parts_of
from ragkv.models import decoder
from ragkv.models.attention import Backend, attention_weights
from ragkv.models.decoder import KV
from ragkv.models.rotary import Rotary
from ragkv.prompt import Prompt

Choose = Callable[[nn.Module, Tensor, KV, Tensor], Tensor]
Watch = Callable[[int, Tensor, KV, Tensor, float], None]


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

    def _rotary(self) -> Rotary:
        return Rotary.of(self.model, len(self.prompt.ids))

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
