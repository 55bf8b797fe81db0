"""Probe: the question looks at the reused keys and values first, before anything is recomputed."""

import math
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from ragkv.selectors.base import Look, ModelSizes, Observation, Pass, Selector, top


@dataclass(frozen=True)
class Probe(Selector):
    """What the question attends to in passes of its own, then what the chosen tokens attend to.

    A pass runs the question through all layers over the reused keys and values, together with the best tokens that the
    previous pass chose. Nothing else is computed, so a pass costs little. Each pass chooses its share of the budget,
    and the best of these tokens look in the next pass: they lead to the value behind an alias, the passage behind a
    name.

    Attributes
    ----------
    hops
        The number of passes.
    first_layer
        Attention below this layer does not count. Which layer is best depends on the model; `ragkv calibrate` finds it.
    power
        Attention weights are raised to this power before they are summed over queries, heads and layers: above 1, sharp
        attention counts more than the same amount spread thin.
    following
        How many tokens behind each chosen one are chosen with it: some models keep there what the token said. Depends
        on the model, like `first_layer`.
    looking
        The largest share of the document's tokens that look in a pass.
    threshold
        In each pass, only tokens that score at least this share of the highest score are chosen: where attention is
        sharp, fewer than `ratio` are recomputed. 0 always spends all of `ratio`.
    """

    hops: int = 3
    first_layer: int = 0
    power: float = 2.0
    following: int = 0
    looking: float = 0.01
    threshold: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hops < 1:
            raise ValueError(f"hops is {self.hops}: at least one pass is needed to choose anything")
        if self.first_layer < 0:
            raise ValueError(f"first_layer is {self.first_layer}: layers count from 0")
        if self.power <= 0:
            raise ValueError(f"power is {self.power}: it must be positive")
        if self.following < 0:
            raise ValueError(f"following is {self.following}: it is a number of tokens, 0 or more")
        if not 0 <= self.looking <= 1:
            raise ValueError(f"looking is {self.looking}: it is a share of the document's tokens, from 0 to 1")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}: it is a share of the highest score, from 0 to 1")
        if self.layer != 0:
            raise ValueError("layer is not 0: the probe chooses before the first layer")

    @property
    def passes(self) -> int:
        return self.hops

    def operations(self, shape: ModelSizes, tokens: int, question: int) -> float:
        """Those of all passes: the question in each, and in all but the first the tokens that look."""
        looking = min(self.looking, self.ratio / self.hops) * tokens
        rows = self.hops * question + (self.hops - 1) * looking
        return shape.layers * rows * (2 * shape.layer_weights + 4 * shape.heads * shape.head_dim * tokens)

    def choose(self, seen: Observation) -> Generator[Pass, Tensor, Tensor]:
        budget = self.budget(seen.prompt)
        at_most = math.ceil(self.looking * len(seen.prompt.document_span))
        chosen = newest = torch.empty(0, dtype=torch.long)
        for hop in range(1, self.hops + 1):
            count = budget * hop // self.hops - len(chosen)
            if count <= 0:
                continue
            attention = yield Look(newest[:at_most], self.power)  # (layers, heads, document)
            if self.first_layer >= len(attention):
                raise ValueError(f"first_layer is {self.first_layer}: this model has {len(attention)} layers")
            scores = attention[self.first_layer :].sum((0, 1))
            chosen = chosen.to(attention.device)
            newest = self._best(scores, chosen, count)
            chosen = torch.cat((chosen, newest))
        return chosen

    def _best(self, scores: Tensor, chosen: Tensor, count: int) -> Tensor:
        """Up to `count` tokens that are not chosen yet: the highest scores, each with the tokens that follow it.

        The host never waits for a GPU here, unless a threshold makes the number of tokens depend on the scores.
        """
        last = len(scores) - 1
        best = top(scores, len(chosen) + count)  # enough even if all chosen tokens are among the best
        spans = best[:, None] + torch.arange(self.following + 1, device=best.device)  # each token and those behind it
        eligible = (scores[best] >= self.threshold * scores.max())[:, None] & (spans <= last)
        # Each token's place in the order in which the spans name it; `nowhere` sorts behind all places.
        nowhere = spans.numel()
        order = torch.arange(nowhere, device=best.device).view(spans.shape).where(eligible, nowhere)
        place = torch.full_like(scores, nowhere, dtype=torch.long)
        place.scatter_reduce_(0, spans.clamp(max=last).flatten(), order.flatten(), "amin")
        place[chosen] = nowhere
        places, tokens = place.sort(stable=True)
        tokens = tokens[:count]
        return tokens[places[:count] < nowhere] if self.threshold else tokens
