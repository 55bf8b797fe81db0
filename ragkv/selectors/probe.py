"""Probe: the question looks over the reused keys and values first, before anything is recomputed."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ragkv.selectors.base import Observation, Selector, top

_NONE = torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Probe(Selector):
    """What the question attends to in passes of its own, and then what the chosen tokens attend to.

    A pass takes the question through all layers over the reused keys and values, and with it the best tokens that the
    pass before chose; nothing else is computed, so it costs little. It chooses its share of the budget, and the best of
    these look on in the next pass together with the question: the value behind an alias, the passage behind a name.

    Attributes
    ----------
    hops
        Passes.
    first_layer
        Attention below this layer does not count. Which layer is best is a property of the model, see
        `ragkv.calibrate`.
    power
        Attention weights are raised to it before they are summed over queries, heads and layers: above 1, sharp
        attention counts more than the same amount spread thin.
    following
        So many tokens behind each chosen one are chosen with it: some models keep there what the token said. As for
        `first_layer`, the calibration knows.
    looking
        The share of the document's tokens that look on in a pass at most.
    threshold
        In each pass, only tokens whose score is at least this share of the highest one are chosen: where attention is
        sharp, fewer than `ratio` are recomputed. 0 spends all of `ratio`.
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

    def choose(self, seen: Observation) -> Tensor:
        assert seen.look is not None
        budget, chosen, new = self.budget(seen.prompt), _NONE, _NONE
        at_most = math.ceil(self.looking * len(seen.prompt.document_span))
        for hop in range(1, self.hops + 1):
            count = budget * hop // self.hops - len(chosen)
            if count > 0:
                attention = seen.look(new[:at_most], self.power)  # (layers, heads, document)
                if self.first_layer >= len(attention):
                    raise ValueError(f"first_layer is {self.first_layer}: this model has {len(attention)} layers")
                chosen = chosen.to(attention.device)
                new = self._more(chosen, attention[self.first_layer :].sum((0, 1)), count)
                chosen = torch.cat((chosen, new))
        return chosen

    def _more(self, chosen: Tensor, scores: Tensor, count: int) -> Tensor:
        """Up to `count` tokens that are not chosen yet: the highest scores, each with what follows it.

        On a GPU the host waits for nothing, unless a threshold makes their number depend on the scores.
        """
        best, last = top(scores, len(chosen) + count), len(scores) - 1  # enough, even if the chosen ones are the best
        spans = best[:, None] + torch.arange(self.following + 1, device=best.device)  # each token and those behind it
        order = torch.arange(spans.numel(), device=best.device).view(spans.shape)
        counts = (scores[best] >= self.threshold * scores.max())[:, None] & (spans <= last)
        place = torch.full_like(scores, spans.numel(), dtype=torch.long)  # of each token in that order; the end is none
        order, spans = order.where(counts, spans.numel()), spans.clamp(max=last)
        place.scatter_reduce_(0, spans.flatten(), order.flatten(), "amin")
        place[chosen] = spans.numel()
        places, found = place.sort(stable=True)
        found = found[:count]
        return found[places[:count] < spans.numel()] if self.threshold else found
