"""What a selector is: a small dataclass that names the document tokens worth recomputing."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ragkv.prompt import Prompt


@dataclass(frozen=True)
class Observation:
    """What a selector may look at.

    Attributes
    ----------
    prompt
        The prompt.
    surprisal
        Gives -log p of every document token within its chunk, ``(document,)``, from the store.
    queries, keys, values
        Of the selection layer, computed afresh, for selectors that observe one (otherwise None): the question's
        queries ``(1, heads, question, head_dim)``, and keys and values of the candidates and the question,
        ``(1, kv_heads, candidates + question, head_dim)``. Queries and keys are rotated.
    choice
        The number of this choice, from 0 on, for selectors that choose in several layers.
    left
        ``(candidates,)``: the document's tokens that were computed up to this layer; None for all of them.
    reused
        Gives the stored keys (rotated to their places) and values of that layer,
        ``(1, kv_heads, document, head_dim)`` each.
    scaling
        The model's factor of query-key products.
    look
        ``look(rows, power)``: a pass of the question and the document's tokens `rows` alone through all layers, over
        the reused keys and values; gives what they attend to, ``(layers, heads, document)``, the weights raised to
        `power` and summed. For selectors that choose before the first layer; what is looked with must be chosen.
    """

    prompt: Prompt
    surprisal: Callable[[], Tensor]
    queries: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    choice: int = 0
    left: Tensor | None = None
    reused: Callable[[], tuple[Tensor, Tensor]] | None = None
    scaling: float = 1.0
    look: Callable[..., Tensor] | None = None

    @property
    def candidates(self) -> Tensor:
        """``(candidates,)``: the document's tokens that can be chosen."""
        return torch.arange(len(self.prompt.document_span)) if self.left is None else self.left


@dataclass(frozen=True)
class Selector(ABC):
    """Chooses document tokens.

    Attributes
    ----------
    ratio
        Share of the document's tokens to recompute, from 0 to 1.
    layer
        Layers below this one are computed for all tokens; at this one the choice is made.
    """

    ratio: float = 0.15
    layer: int = 0

    observes: ClassVar[bool] = False  # needs the selection layer's queries, keys and values
    compares: ClassVar[bool] = False  # needs also that layer's stored keys and values
    reuses: ClassVar[bool] = True  # False: nothing is taken from the store
    recomputes_question: ClassVar[bool] = True  # False: only its last token

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio}: it is a share of the document's tokens, from 0 to 1")
        if self.layer < 0:
            raise ValueError(f"layer is {self.layer}: layers count from 0")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers at which it chooses; from the second on among the tokens that it chose before."""
        return (self.layer,)

    def budget(self, prompt: Prompt) -> int:
        """How many document tokens are recomputed: ``floor(ratio * document tokens)``."""
        return math.floor(self.ratio * len(prompt.document_span))

    @abstractmethod
    def choose(self, seen: Observation) -> Tensor:
        """Indices of the chosen tokens within the document, in any order.

        Each is best named once: a choice that names one twice is right, too, but the prefill is done again for it.
        """


@dataclass(frozen=True)
class ScoringSelector(Selector):
    """A selector that scores every document token and takes the highest scores."""

    @abstractmethod
    def scores(self, seen: Observation) -> Tensor:
        """A score per document token, ``(document,)``; higher is more worth recomputing."""

    def choose(self, seen: Observation) -> Tensor:
        return top(self.scores(seen), self.budget(seen.prompt))


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest scores; of equal ones the first."""
    return scores.sort(descending=True, stable=True).indices[:count]


def share_by_length(budget: int, lengths: Sequence[int]) -> list[int]:
    """Share `budget` among chunks in proportion to their lengths, with largest remainders."""
    total = sum(lengths)
    if total == 0:
        return [0] * len(lengths)
    shares = [budget * length // total for length in lengths]
    by_remainder = sorted(range(len(lengths)), key=lambda i: (-(budget * lengths[i] % total), i))
    for i in by_remainder[: budget - sum(shares)]:
        shares[i] += 1
    return shares


def share_evenly(budget: int, lengths: Sequence[int]) -> list[int]:
    """Share `budget` among chunks one token at a time, earlier chunks first, none more than its length."""
    shares = [0] * len(lengths)
    left = min(budget, sum(lengths))
    while left:
        unfilled = [i for i, length in enumerate(lengths) if shares[i] < length]
        each = max(1, left // len(unfilled))
        for i in unfilled:
            more = min(each, lengths[i] - shares[i], left)
            shares[i] += more
            left -= more
    return shares


def chunk_indices(prompt: Prompt) -> list[Tensor]:
    """Each chunk's token indices within the document."""
    offset = len(prompt.prefix)
    return [torch.arange(span.start - offset, span.stop - offset) for span in prompt.chunk_spans]


def join(parts: list[Tensor]) -> Tensor:
    """One tensor of indices, also of no parts at all."""
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
