"""A selector at work: at its layers, the tokens that it does not choose drop out of the computation."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ragkv.fusion.choices import Choices
from ragkv.fusion.forward import Forward, Watch
from ragkv.fusion.passes import Passes
from ragkv.fusion.rows import Rows
from ragkv.fusion.which_prompt import which_prompt
from ragkv.models import decoder
from ragkv.models.decoder import KV
from ragkv.selectors import Observation, Selector


class Selection:
    """One selector in the prefills of one or several prompts."""

    def __init__(self, selector: Selector, choices: Choices, forward: Forward):
        self._selector = selector
        self._choices = choices
        self._forward = forward
        self._passes = Passes(forward)

    def at_layer(self, index: int, hidden: Tensor, rows: Rows, watch: Watch | None = None) -> tuple[Tensor, Rows, int]:
        """Let the selector choose at a layer: before it or, if it observes the layer's keys and values, within it.

        Returns
        -------
        hidden, rows
            The tokens that go on.
        next_layer
            The layer that they go on with.
        """
        if self._selector.observes:
            choose = partial(self._observe, index)
            hidden, rows = self._forward.layer(index, hidden, rows, choose=choose, watch=watch)
            return hidden, rows, index + 1
        with self._forward.clock("select"):
            seen = {
                number: Observation(self._forward.prompts[number], self._forward.reused[number].surprisal)
                for number in self._with_document
            }
            kept, rows = self._kept(seen, rows)
        return hidden[:, kept.to(hidden.device)], rows, index

    def _observe(self, index: int, attention: nn.Module, normed: Tensor, fresh: KV, rows: Rows) -> tuple[Tensor, Rows]:
        """The rows that go on, chosen by what the layer computed."""
        keys, values = fresh
        with self._forward.clock("select"):
            questions = self._questions(index, attention, normed, rows)
            seen = {}
            for number in self._with_document:
                prompt, span = self._forward.prompts[number], rows.spans[number]
                candidates = rows.by_prompt[number][: -len(prompt.question)]
                seen[number] = Observation(
                    prompt,
                    self._forward.reused[number].surprisal,
                    queries=questions[number],
                    keys=keys[:, :, span.start : span.stop],
                    values=values[:, :, span.start : span.stop],
                    choice=self._selector.layers.index(index),
                    left=candidates - len(prompt.prefix),
                    reused=partial(self._stored_document, number, index) if self._selector.compares else None,
                    scaling=attention.scaling,
                )
            return self._kept(seen, rows)

    @property
    def _with_document(self) -> list[int]:
        """The numbers of the prompts that have a document to choose from."""
        return [number for number, prompt in enumerate(self._forward.prompts) if prompt.document_span]

    def _questions(self, index: int, attention: nn.Module, normed: Tensor, rows: Rows) -> Sequence[Tensor]:
        """The rotated queries of each prompt's question, ``(1, heads, question, head_dim)``."""
        lengths = [len(prompt.question) for prompt in self._forward.prompts]
        ends = [span.stop for span in rows.spans]
        questions = [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        asked = torch.cat([normed[:, question.start : question.stop] for question in questions], dim=1)
        positions = torch.cat([rows.positions[question.start : question.stop] for question in questions])
        queries = self._forward.rotary[index](decoder.queries(attention, asked), positions)
        return queries.split(lengths, dim=2)

    def _kept(self, seen: Mapping[int, Observation], rows: Rows) -> tuple[Tensor, Rows]:
        """What the selector chooses for the prompts that have a document, as `Rows.keep` returns it."""
        chosen = self._passes.choose(self._selector, seen)
        prompts = self._forward.prompts
        kept = []
        for number, prompt in enumerate(prompts):
            with which_prompt(number, len(prompts)):
                kept.append(self._choices.rows(self._selector, prompt, chosen.get(number), rows.by_prompt[number]))
        return rows.keep(kept)

    def _stored_document(self, number: int, index: int) -> KV:
        """The stored keys, rotated, and values of a prompt's document, until the layer's fresh ones overwrite them."""
        document = self._forward.prompts[number].document_span
        keys, values = self._forward.stored(number, index)
        return keys[:, :, document.start : document.stop], values[:, :, document.start : document.stop]
