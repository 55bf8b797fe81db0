"""Question attention and deviation combined: what matters to the question *and* is wrong in the cache."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ragkv.selectors.a3 import A3
from ragkv.selectors.base import ModelSizes, Observation
from ragkv.selectors.cacheblend import deviation, deviation_operations


@dataclass(frozen=True)
class A3Blend(A3):
    """The scores of A^3 and CacheBlend, each normalised over the document, combined.

    Attributes
    ----------
    combine
        ``"mul"``: ``a**alpha * d**(1 - alpha)``; ``"sum"``: ``alpha * a + (1 - alpha) * d``; ``"rank"``: the same sum
        of the tokens' ranks instead of their scores.
    alpha
        Weight of the question's attention, from 0 to 1.
    gap
        As in `CacheBlend`.
    """

    combine: Literal["mul", "sum", "rank"] = "mul"
    alpha: float = 0.5
    gap: Literal["v", "k"] = "v"

    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keys != "fresh":
            raise ValueError(f"keys is {self.keys!r}: a3_blend compares fresh keys and values with stored ones")
        if self.combine not in ("mul", "sum", "rank"):
            raise ValueError(f"combine is {self.combine!r}: choose 'mul', 'sum' or 'rank'")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}: it is a weight from 0 to 1")
        if self.gap not in ("v", "k"):
            raise ValueError(f"gap is {self.gap!r}: choose 'v' (values) or 'k' (keys)")

    def operations(self, shape: ModelSizes, tokens: int, question: int) -> float:
        """Those of both scores."""
        return super().operations(shape, tokens, question) + deviation_operations(shape, tokens)

    def scores(self, seen: Observation) -> Tensor:
        normalise = _ranks if self.combine == "rank" else _shares
        attention = normalise(super().scores(seen))
        gap = normalise(deviation(seen, self.gap))
        if self.combine == "mul":
            return attention**self.alpha * gap ** (1 - self.alpha)
        return self.alpha * attention + (1 - self.alpha) * gap


def _shares(scores: Tensor) -> Tensor:
    """Scores divided by their sum; all equal if the sum is 0."""
    total = scores.sum()
    return scores / total if total > 0 else torch.full_like(scores, 1 / max(1, scores.numel()))


def _ranks(scores: Tensor) -> Tensor:
    """From 0 for the lowest score to 1 for the highest; among equal scores the first ranks higher."""
    places = scores.argsort(descending=True, stable=True).argsort()
    highest = scores.numel() - 1
    return (highest - places).float() / max(1, highest)
