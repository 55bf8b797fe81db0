"""Selectors that depend on positions alone: baselines, and the two ends of the scale."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ragkv.selectors.base import Observation, ScoringSelector, Selector


@dataclass(frozen=True)
class FullPrefill(Selector):
    """Computes everything and reuses nothing: what the other selectors are measured against."""

    ratio: float = field(default=1.0, init=False)

    reuses: ClassVar[bool] = False

    def choose(self, seen: Observation) -> Tensor:
        return torch.arange(len(seen.prompt.document_span))


@dataclass(frozen=True)
class FullReuse(Selector):
    """Computes the question only; the whole document is taken as stored."""

    ratio: float = field(default=0.0, init=False)

    def choose(self, seen: Observation) -> Tensor:
        return torch.empty(0, dtype=torch.long)


@dataclass(frozen=True)
class Cat(FullReuse):
    """Computes the last token only: the question, too, gets its keys and values from a separate pass."""

    recomputes_question: ClassVar[bool] = False


@dataclass(frozen=True)
class Tail(ScoringSelector):
    """The document's last tokens, which stand next to the question."""

    def scores(self, seen: Observation) -> Tensor:
        return torch.arange(len(seen.prompt.document_span))


@dataclass(frozen=True)
class RandomTokens(ScoringSelector):
    """Random document tokens.

    Attributes
    ----------
    seed
        The same seed chooses the same tokens.
    """

    seed: int = 0

    def scores(self, seen: Observation) -> Tensor:
        return torch.rand(len(seen.prompt.document_span), generator=torch.Generator().manual_seed(self.seed))
