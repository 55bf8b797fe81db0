"""Question attention and deviation together: what matters to the question *and* is wrong in the cache."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ragkv.selectors.a3 import A3
from ragkv.selectors.base import Observation
from ragkv.selectors.cacheblend import deviation


@dataclass(frozen=True)
class A3Blend(A3):
    """A^3's score and CacheBlend's, each normalised over the document, combined.

    Attributes
    ----------
    combine
        ``"mul"``: ``a**alpha * d**(1 - alpha)``; ``"sum"``: ``alpha * a + (1 - alpha) * d``; ``"rank"``: the sum
        over the tokens' ranks instead of their scores.
    alpha
        Weight of the question's attention, from 0 to 1.
    gap
        As in `CacheBlend`.
    """

    combine: Literal["mul", "sum", "rank"] = "mul"
    alpha: float = 0.5
    gap: Literal["v", "k"] = "v"

    observes: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.combine not in ("mul", "sum", "rank"):
            raise ValueError(f"combine is {self.combine!r}: choose 'mul', 'sum' or 'rank'")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}: it is a weight from 0 to 1")
        if self.gap not in ("v", "k"):
            raise ValueError(f"gap is {self.gap!r}: choose 'v' (values) or 'k' (keys)")

    def scores(self, seen: Observation) -> Tensor:
        normalise = _ranks if self.combine == "rank" else _shares
        attention, gap = normalise(super().scores(seen)), normalise(deviation(seen, self.gap))
        if self.combine == "mul":
            return attention**self.alpha * gap ** (1 - self.alpha)
        return self.alpha * attention + (1 - self.alpha) * gap


def _shares(scores: Tensor) -> Tensor:
    """Scores that add up to 1; all equal where there is nothing to tell them apart."""
    total = scores.sum()
    return scores / total if total > 0 else torch.full_like(scores, 1 / max(1, scores.numel()))


def _ranks(scores: Tensor) -> Tensor:
    """0 for the lowest score to 1 for the highest; of equal ones the first ranks higher."""
    places = scores.argsort(descending=True, stable=True).argsort()
    highest = scores.numel() - 1
    return (highest - places).float() / max(1, highest)
