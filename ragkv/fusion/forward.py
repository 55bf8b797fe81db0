"""The model's layers over one or several prompts.

Some tokens of each prompt are computed, and attend to the keys and values of all of its tokens. The rows of all prompts
go through a layer's linear maps together, so that the weights are read once for all of them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ragkv.fusion.attention import attend, summed_weights
from ragkv.fusion.cache import write
from ragkv.fusion.clock import Clock
from ragkv.fusion.graphs import LayerGraphs
from ragkv.fusion.memory import Memory
from ragkv.fusion.placement import Placement
from ragkv.fusion.rows import Rows, extents_of
from ragkv.loading.reused import ReusedKV
from ragkv.models import decoder
from ragkv.models.attention import Backend, auto, triton
from ragkv.models.decoder import KV
from ragkv.prompt import Prompt

Choose = Callable[[nn.Module, Tensor, KV, Rows], tuple[Tensor, Rows]]
"""Takes a layer's attention module, its normed input, the fresh keys (rotated) and values, and the rows; returns the
indices of the rows that go on, and these rows, see `Rows.keep`."""

Watch = Callable[[int, Tensor, KV, Rows, float], object]
"""Takes a layer's index, rotated queries, the keys (rotated) and values of all slots, the queries' rows, and the
scaling."""


class Forward:
    """The model's layers over prompts, each over its own fused keys and values.

    Parameters
    ----------
    memory
        Where the layers' keys and values lie, those of all prompts end to end.
    reused
        The stored segments that each prompt reuses.
    graphs
        Graphs over `memory` for few tokens, if there are any.

    Attributes
    ----------
    layers
        The indices of the model's layers.
    extents
        The slots of each prompt in the memory of a layer.
    """

    def __init__(
        self,
        memory: Memory,
        prompts: Sequence[Prompt],
        reused: Sequence[ReusedKV],
        backend: Backend,
        clock: Clock,
        graphs: LayerGraphs | None = None,
    ):
        self.prompts = prompts
        self.layers = range(memory.model.config.num_hidden_layers)
        self.extents = extents_of([len(prompt.ids) for prompt in prompts])
        self.reused = reused
        self.rotary = memory.rotary
        self.clock = clock
        self._model = memory.model
        self._memory = memory
        self._stored = Placement(reused, self.extents, memory, clock)
        self._backend = backend
        self._graphs = graphs if backend in (auto, triton) else None  # they hold the package's own kernel
        self._evicted: dict[int, list[KV]] = {}  # what is left of the layers that something was evicted from
        ids = torch.cat([prompt.tensor for prompt in prompts])
        self._ids = ids.to(self._model.model.embed_tokens.weight.device, non_blocking=True)

    @property
    def device(self) -> torch.device:
        """Where the first layer's input is."""
        return self._ids.device

    def place_stored(self, layers: range, *, prefix_only: bool = False) -> None:
        """Begin to place the stored keys and values of these layers, see `Placement.start`."""
        self._stored.start(layers, prefix_only=prefix_only)

    def stored(self, number: int, index: int) -> KV:
        """A prompt's stored keys, rotated, and values of a layer, before its fresh ones are written over them."""
        self._stored.finish(index)
        return self.of_prompt(number, self._tokens_of(index))

    def rows(self, spans: Sequence[range]) -> Rows:
        """The tokens at these positions of each prompt."""
        positions = [torch.arange(span.start, span.stop, device=self.device) for span in spans]
        return Rows.of(positions, self.extents)

    def embed(self, rows: Rows) -> Tensor:
        """The input of the first layer, ``(1, rows, hidden)``."""
        return decoder.embed(self._model, self._ids[rows.slots][None])

    def through(self, layers: range, hidden: Tensor, rows: Rows, watch: Watch | None = None) -> Tensor:
        """Some layers for these rows, all of which go on."""
        if watch is None and (graphs := self._graphs_for(rows)):
            return graphs.replay(layers, hidden, rows, before=self._stored.finish)
        for index in layers:
            hidden, rows = self.layer(index, hidden, rows, watch=watch)
        return hidden

    def layer(
        self, index: int, hidden: Tensor, rows: Rows, *, choose: Choose | None = None, watch: Watch | None = None
    ) -> tuple[Tensor, Rows]:
        """One layer: its output, and the rows that went on.

        Parameters
        ----------
        choose
            Says which rows go on, once keys and values are computed.
        watch
            Sees the queries of those that went on, and all keys and values, once attention is computed.
        """
        layer = self._model.model.layers[index]
        attention = layer.self_attn
        device = decoder.device(layer)
        rotary = self.rotary[index]
        hidden = hidden.to(device)
        rows = rows.to(device)
        going_on = rows

        def place(fresh: KV) -> KV:
            return self._place(index, fresh, rows)

        def choose_rows(normed: Tensor, fresh: KV) -> Tensor:
            nonlocal going_on
            assert choose is not None
            keys, values = fresh
            kept, going_on = choose(attention, normed, (rotary(keys, rows.positions), values), rows)
            return kept

        def attend_rows(queries: Tensor, keys: Tensor, values: Tensor, _: Tensor, scaling: float) -> Tensor:
            attended = attend(self._backend, queries, keys, values, going_on, scaling)
            if watch is not None:
                watch(index, queries, (keys, values), going_on, scaling)
            return attended

        hidden, _ = decoder.run_layer(
            layer, hidden, rows.positions, rotary, place, attend_rows, choose=choose_rows if choose else None
        )
        return hidden, going_on

    def observe(self, index: int, hidden: Tensor, rows: Rows) -> tuple[Tensor, KV, float]:
        """What these rows attend to in a layer, without computing its output.

        Returns
        -------
        queries
            ``(1, heads, rows, head_dim)``, rotated.
        fused
            Keys (rotated) and values of all slots, these rows' own included.
        scaling
            Of their products.
        """
        layer = self._model.model.layers[index]
        attention = layer.self_attn
        rows = rows.to(decoder.device(layer))
        normed = decoder.attention_input(layer, hidden.to(rows.positions.device))
        fused = self._place(index, decoder.keys_values(attention, normed), rows)
        queries = self.rotary[index](decoder.queries(attention, normed), rows.positions)
        return queries, fused, attention.scaling

    def weights(self, rows: Rows, power: float) -> Tensor:
        """Attention weights of a pass over these rows through all layers.

        Returns
        -------
        Tensor
            ``(layers, heads, slots)`` in float32: raised to `power`, and summed over the rows. The next call may
            overwrite it.
        """
        hidden = self.embed(rows)
        if graphs := self._graphs_for(rows):
            graphs.replay(self.layers, hidden, rows, power, before=self._stored.finish)
            return graphs.weights

        by_layer: list[Tensor] = []

        def watch(index: int, queries: Tensor, fused: KV, rows: Rows, scaling: float) -> None:
            by_layer.append(summed_weights(queries, fused[0], rows, scaling, power))

        self.through(self.layers, hidden, rows, watch)
        return torch.stack([weights.to(by_layer[0].device) for weights in by_layer])

    def evict(self, index: int, remaining: list[KV]) -> None:
        """Replace each prompt's keys and values of a layer, which no layer needs any more, by what remains of them."""
        self._evicted[index] = self._memory.replace(index, remaining, self.extents)

    def cache(self, number: int) -> list[KV]:
        """Of a prompt, by layer: rotated keys, and values, ``(1, kv_heads, tokens, head_dim)`` each.

        Without what was evicted.
        """
        return [
            self._evicted[index][number] if index in self._evicted else self.of_prompt(number, self._tokens_of(index))
            for index in self.layers
        ]

    def of_prompt(self, number: int, states: KV) -> KV:
        """A prompt's part of the keys and values of all slots."""
        extent = self.extents[number]
        keys, values = states
        return keys[:, :, extent.start : extent.stop], values[:, :, extent.start : extent.stop]

    def _place(self, index: int, fresh: KV, rows: Rows) -> KV:
        """Write fresh keys, rotated, and values over a layer's stored ones; returns those of all slots."""
        self._stored.finish(index)
        write(self._memory.layer(index), fresh, self.rotary[index], rows.positions, rows.slots)
        return self._tokens_of(index)

    def _tokens_of(self, index: int) -> KV:
        """A layer's keys and values of the prompts' tokens, without slots to spare."""
        keys, values = self._memory.layer(index)
        tokens = self.extents[-1].stop
        return keys.narrow(2, 0, tokens), values.narrow(2, 0, tokens)

    def _graphs_for(self, rows: Rows) -> LayerGraphs | None:
        """The graphs, if they cover this number of rows."""
        return self._graphs if self._graphs is not None and self._graphs.cover(len(rows)) else None
