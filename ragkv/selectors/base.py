"""What a selector is: a small dataclass that chooses the document tokens to recompute."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ragkv.prompt import Prompt


@dataclass(frozen=True)
class Observation:
    """What a selector may base its choice on.

    Attributes
    ----------
    prompt
        The prompt.
    surprisal
        Returns -log p of every document token within its chunk, ``(document,)``, from the store.
    queries, keys, values
        Computed afresh at the selection layer, for selectors that observe it (otherwise None): the question's queries
        ``(1, heads, question, head_dim)``, and the keys and values of the candidates and the question,
        ``(1, kv_heads, candidates + question, head_dim)``. Queries and keys are rotated.
    choice
        Which choice this is, counted from 0, for selectors that choose in several layers.
    left
        ``(candidates,)``: the document tokens that were computed up to this layer; None if all of them were.
    reused
        Returns the stored keys (rotated to their positions) and values of the selection layer,
        ``(1, kv_heads, document, head_dim)`` each, which are overwritten after the choice. Only for selectors that
        compare them with the fresh ones (`Selector.compares`).
    scaling
        The factor by which the model multiplies query-key products.
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

    @property
    def candidates(self) -> Tensor:
        """``(candidates,)``: indices within the document of the tokens that can be chosen."""
        return torch.arange(len(self.prompt.document_span)) if self.left is None else self.left


@dataclass(frozen=True)
class Look:
    """A pass through all layers that a selector asks for before the first layer.

    The question and some tokens of the document run over the reused keys and values, and nothing else does. The answer
    is their attention to the document, ``(layers, heads, document)`` in float32: the weights raised to `power`, summed
    over these tokens. It is overwritten by the next pass.

    Attributes
    ----------
    rows
        ``(rows,)``: the tokens of the document that run, counted from its first one. They must be among those that are
        finally chosen.
    """

    rows: Tensor
    power: float = 1.0


@dataclass(frozen=True)
class Ask:
    """A pass through the layers below `layer` that a selector asks for before the first layer.

    The question runs over the reused keys and values, and nothing else does. The answer is an `Observation` at `layer`:
    the question's ``queries``, the ``keys`` of the document (as stored) and of the question, and ``scaling``.
    """

    layer: int


Pass = Look | Ask


class ModelSizes(Protocol):
    """The sizes of a model that the cost of choosing depends on; `ragkv.costs.shape.Shape` has them."""

    @property
    def layers(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def layer_weights(self) -> int:
        """The number of weights in one layer's matrices."""


@dataclass(frozen=True)
class Selector(ABC):
    """Chooses document tokens.

    Only `choose` must be written. A selector whose choice takes noticeable time should also say how much, with `passes`
    and `operations`: planning (`ragkv.costs`) counts them.

    Attributes
    ----------
    ratio
        Share of the document's tokens to recompute, from 0 to 1.
    layer
        The selection layer: layers below it are computed for all tokens, and the choice is made at it.
    """

    ratio: float = 0.15
    layer: int = 0

    compares: ClassVar[bool] = False  # needs that layer's stored keys and values as well
    reuses: ClassVar[bool] = True  # False: takes nothing from the store
    recomputes_question: ClassVar[bool] = True  # False: recomputes only the question's last token

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio}: it is a share of the document's tokens, from 0 to 1")
        if self.layer < 0:
            raise ValueError(f"layer is {self.layer}: layers count from 0")

    @property
    def observes(self) -> bool:
        """Whether it needs the selection layer's fresh queries, keys and values."""
        return False

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers at which it chooses; each later one chooses among the tokens that the one before it kept."""
        return (self.layer,)

    @property
    def passes(self) -> int:
        """How often it asks for a `Look` at most: passes through all layers before the prefill itself."""
        return 0

    def operations(self, shape: ModelSizes, tokens: int, question: int) -> float:
        """Floating-point operations that the choice takes at most, its own `passes` included.

        What is computed of the layers below the selection layer belongs to the prefill and is not counted here.

        Parameters
        ----------
        shape
            The model's sizes.
        tokens
            Tokens of the prompt.
        question
            Tokens of the question.
        """
        return 0.0

    def budget(self, prompt: Prompt) -> int:
        """How many document tokens to recompute: ``floor(ratio * document tokens)``."""
        return math.floor(self.ratio * len(prompt.document_span))

    @abstractmethod
    def choose(self, seen: Observation) -> Tensor | Generator[Pass, Any, Tensor]:
        """Indices of the chosen tokens within the document, in any order.

        Name each token once. Naming one twice gives the same result, but the prefill has to be run a second time.

        A selector that chooses before the first layer may ask for passes first. Its method is a generator then: it
        yields a `Look` or an `Ask`, is sent the answer, and returns what it chooses. So the passes of several prompts
        can be run together.
        """


@dataclass(frozen=True)
class ScoringSelector(Selector):
    """A selector that scores every document token and takes the highest scores."""

    @abstractmethod
    def scores(self, seen: Observation) -> Tensor:
        """A score per document token, ``(document,)``; the higher, the more worth recomputing."""

    def choose(self, seen: Observation) -> Tensor | Generator[Pass, Any, Tensor]:
        return top(self.scores(seen), self.budget(seen.prompt))


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest scores; among equal scores the first ones win."""
    return scores.sort(descending=True, stable=True).indices[:count]


def share_by_length(budget: int, lengths: Sequence[int]) -> list[int]:
    """Share `budget` among chunks in proportion to their lengths, by the largest-remainder method."""
    total = sum(lengths)
    if total == 0:
        return [0] * len(lengths)
    shares = [budget * length // total for length in lengths]
    by_remainder = sorted(range(len(lengths)), key=lambda i: (-(budget * lengths[i] % total), i))
    for i in by_remainder[: budget - sum(shares)]:
        shares[i] += 1
    return shares


def share_evenly(budget: int, lengths: Sequence[int]) -> list[int]:
    """Deal `budget` to chunks one token at a time, earlier chunks first, none more than its length."""
    shares = [0] * len(lengths)
    remaining = min(budget, sum(lengths))
    while remaining:
        unfilled = [i for i, length in enumerate(lengths) if shares[i] < length]
        each = max(1, remaining // len(unfilled))
        for i in unfilled:
            more = min(each, lengths[i] - shares[i], remaining)
            shares[i] += more
            remaining -= more
    return shares


def chunk_indices(prompt: Prompt) -> list[Tensor]:
    """The indices of each chunk's tokens within the document."""
    offset = len(prompt.prefix)
    return [torch.arange(span.start - offset, span.stop - offset) for span in prompt.chunk_spans]


def join(parts: list[Tensor]) -> Tensor:
    """One tensor of indices; an empty one if there are no parts."""
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
