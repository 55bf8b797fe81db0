"""A selector at work: at its layers, the tokens that it does not choose drop out of the computation."""

from functools import partial

import torch
from torch import Tensor, nn

from ragkv.fusion.choices import Choices
from ragkv.fusion.forward import Forward, Watch
from ragkv.models import decoder
from ragkv.models.decoder import KV
from ragkv.selectors import Observation, Selector


class Selection:
    """One selector in one prefill."""

    def __init__(self, selector: Selector, choices: Choices, forward: Forward):
        self._selector = selector
        self._choices = choices
        self._forward = forward
        self._prompt = forward.prompt

    def at_layer(
        self, index: int, hidden: Tensor, active: Tensor, watch: Watch | None = None
    ) -> tuple[Tensor, Tensor, int]:
        """Let the selector choose at a layer: before it or, if it observes the layer's keys and values, within it.

        Returns
        -------
        hidden, active
            The tokens that go on.
        next_layer
            The layer that they go on with.
        """
        if self._selector.observes:
            choose = partial(self._observe, index)
            hidden, active = self._forward.layer(index, hidden, active, choose=choose, watch=watch)
            return hidden, active, index + 1
        with self._forward.clock("select"):
            surprisal = self._forward.reused.surprisal
            seen = Observation(self._prompt, surprisal, look=self._forward.look, ask=self._ask)
            kept = self._choices.rows(self._selector, seen, active)
        kept = kept.to(active.device, non_blocking=active.is_cuda)
        return hidden[:, kept.to(hidden.device)], active[kept], index

    def _ask(self, index: int) -> Observation:
        queries, keys, scaling = self._forward.ask(index)
        return Observation(self._prompt, self._forward.reused.surprisal, queries=queries, keys=keys, scaling=scaling)

    def _observe(self, index: int, attention: nn.Module, normed: Tensor, fresh: KV, active: Tensor) -> Tensor:
        """The rows that go on, chosen by what the layer computed. Stored keys are loaded only if they are asked for."""
        keys, values = fresh
        rotary = self._forward.rotary[index]
        question = len(self._prompt.question)
        with self._forward.clock("select"):
            queries = decoder.queries(attention, normed[:, -question:])
            seen = Observation(
                self._prompt,
                self._forward.reused.surprisal,
                queries=rotary(queries, active[-question:]),
                keys=keys,
                values=values,
                choice=self._selector.layers.index(index),
                left=active[:-question] - len(self._prompt.prefix),
                reused=partial(self._stored_document, index, normed.device),
                scaling=attention.scaling,
            )
            return self._choices.rows(self._selector, seen, active)

    def _stored_document(self, index: int, device: torch.device) -> KV:
        """The document's stored keys, rotated to their positions, and values."""
        document = self._prompt.document_span
        keys, values = self._forward.reused.document(index, device)
        return self._forward.rotary[index](keys, slice(document.start, document.stop)), values
