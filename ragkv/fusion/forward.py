"""The model's layers over one prompt: some tokens are computed, and attend to the keys and values of all of them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ragkv.fusion.cache import write
from ragkv.fusion.clock import Clock
from ragkv.fusion.graphs import LayerGraphs
from ragkv.fusion.memory import Memory
from ragkv.fusion.placement import Placement
from ragkv.loading.reused import ReusedKV
from ragkv.models import decoder
from ragkv.models.attention import Backend, attention_weights, auto, triton
from ragkv.models.decoder import KV
from ragkv.prompt import Prompt

Choose = Callable[[nn.Module, Tensor, KV, Tensor], Tensor]
"""Takes a layer's attention module, its normed input, the fresh keys (rotated) and values, and the tokens' positions;
returns the rows that go on."""

Watch = Callable[[int, Tensor, KV, Tensor, float], object]
"""Takes a layer's index, rotated queries, all keys (rotated) and values, the queries' positions, and the scaling."""


class Forward:
    """The model's layers over one prompt, each over its fused keys and values.

    Parameters
    ----------
    memory
        Where the layers' keys and values lie.
    reused
        The stored segments that the prompt reuses.
    graphs
        Graphs over `memory` for few tokens, if there are any.

    Attributes
    ----------
    layers
        The indices of the model's layers.
    """

    def __init__(
        self,
        memory: Memory,
        prompt: Prompt,
        reused: ReusedKV,
        attend: Backend,
        clock: Clock,
        graphs: LayerGraphs | None = None,
    ):
        self.prompt = prompt
        self.layers = range(memory.model.config.num_hidden_layers)
        self.reused = reused
        self.rotary = memory.rotary
        self.clock = clock
        self._model = memory.model
        self._memory = memory
        self._stored = Placement(reused, memory, clock)
        self._attend = attend
        self._graphs = graphs if attend in (auto, triton) else None  # they hold the package's own kernel
        self._evicted: dict[int, KV] = {}  # what is left of the layers that something was evicted from
        self._ids = prompt.tensor.to(self._model.model.embed_tokens.weight.device, non_blocking=True)

    def place_stored(self, layers: range, *, prefix_only: bool = False) -> None:
        """Begin to place the stored keys and values of these layers, see `Placement.start`."""
        self._stored.start(layers, prefix_only=prefix_only)

    def positions(self, span: range) -> Tensor:
        """The positions of a span, ``(tokens,)``, where the first layer's input is."""
        return torch.arange(span.start, span.stop, device=self._ids.device)

    def embed(self, active: Tensor) -> Tensor:
        """The input of the first layer, ``(1, active, hidden)``, for the tokens at the positions `active`."""
        return decoder.embed(self._model, self._ids[active][None])

    def through(self, layers: range, hidden: Tensor, active: Tensor, watch: Watch | None = None) -> Tensor:
        """Some layers for the tokens at the positions `active`, all of which go on."""
        if watch is None and (graphs := self._graphs_for(active)):
            return graphs.replay(layers, hidden, active, before=self._stored.finish)
        for index in layers:
            hidden, active = self.layer(index, hidden, active, watch=watch)
        return hidden

    def layer(
        self, index: int, hidden: Tensor, active: Tensor, *, choose: Choose | None = None, watch: Watch | None = None
    ) -> tuple[Tensor, Tensor]:
        """One layer for the tokens at the positions `active`: its output, and the positions that went on.

        Parameters
        ----------
        choose
            Says which rows of `active` go on, once keys and values are computed.
        watch
            Sees the queries of those that went on, and all keys and values, once attention is computed.
        """
        layer = self._model.model.layers[index]
        attention = layer.self_attn
        device = decoder.device(layer)
        rotary = self.rotary[index]
        hidden, active = hidden.to(device), active.to(device)

        def place(fresh: KV) -> KV:
            self._stored.finish(index)
            write(self._memory.layer(index), fresh, rotary, active, active)
            return self._tokens_of(index)

        def choose_rows(normed: Tensor, fresh: KV) -> Tensor:
            assert choose is not None
            keys, values = fresh
            return choose(attention, normed, (rotary(keys, active), values), active).to(device)

        def attend(queries: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scaling: float) -> Tensor:
            attended = self._attend(queries, keys, values, positions, scaling)
            if watch is not None:
                watch(index, queries, (keys, values), positions, scaling)
            return attended

        return decoder.run_layer(layer, hidden, active, rotary, place, attend, choose=choose_rows if choose else None)

    def look(self, rows: Tensor, power: float = 1.0) -> Tensor:
        """What the question and some tokens of the document attend to, if only they are computed.

        Parameters
        ----------
        rows
            ``(rows,)``: the tokens, counted from the document's first one.

        Returns
        -------
        Tensor
            ``(layers, heads, document)``, in float32: attention weights, raised to `power` and summed over the tokens
            that attend.
        """
        document = self.prompt.document_span
        positions = rows.to(self._ids.device).sort().values + document.start
        active = torch.cat((positions, self.positions(self.prompt.question_span)))
        return self._weights(self.embed(active), active, power)[:, :, document.start : document.stop]

    def ask(self, index: int) -> tuple[Tensor, Tensor, float]:
        """The question at a layer, if only it is computed.

        Returns
        -------
        queries
            Of the question, rotated, ``(1, heads, question, head_dim)``.
        keys
            Of document and question, rotated, ``(1, kv_heads, document + question, head_dim)``.
        scaling
            The factor by which the model multiplies their products.

        Raises
        ------
        ValueError
            The model has no such layer.
        """
        if index not in self.layers:
            raise ValueError(f"selection layer {index}: this model's layers are 0 to {self.layers[-1]}")
        active = self.positions(self.prompt.question_span)
        hidden = self.through(self.layers[:index], self.embed(active), active)
        seen: list[tuple[Tensor, Tensor, float]] = []

        def watch(_: int, queries: Tensor, fused: KV, positions: Tensor, scaling: float) -> None:
            seen.append((queries, fused[0][:, :, self.prompt.document_span.start :], scaling))

        self.layer(index, hidden, active, watch=watch)
        return seen[0]

    def evict(self, index: int, remaining: KV) -> None:
        """Replace a layer's keys and values, which no layer needs any more, by what remains of them."""
        self._evicted[index] = remaining
        self._memory.release(index)

    def cache(self) -> list[KV]:
        """By layer, rotated keys, and values, ``(1, kv_heads, tokens, head_dim)`` each, without what was evicted."""
        return [self._evicted[index] if index in self._evicted else self._tokens_of(index) for index in self.layers]

    def _tokens_of(self, index: int) -> KV:
        """A layer's keys and values of the prompt's tokens, without slots to spare."""
        keys, values = self._memory.layer(index)
        tokens = len(self.prompt.ids)
        return keys.narrow(2, 0, tokens), values.narrow(2, 0, tokens)

    def _weights(self, hidden: Tensor, active: Tensor, power: float) -> Tensor:
        """Attention weights over all tokens, ``(layers, heads, tokens)``, see `look`."""
        if graphs := self._graphs_for(active):
            graphs.replay(self.layers, hidden, active, power, before=self._stored.finish)
            return graphs.weights

        by_layer: list[Tensor] = []

        def watch(index: int, queries: Tensor, fused: KV, positions: Tensor, scaling: float) -> None:
            by_layer.append(attention_weights(queries, fused[0], positions, scaling, power))

        self.through(self.layers, hidden, active, watch)
        return torch.stack([weights.to(by_layer[0].device) for weights in by_layer])

    def _graphs_for(self, active: Tensor) -> LayerGraphs | None:
        return self._graphs if self._graphs is not None and self._graphs.cover(len(active)) else None
