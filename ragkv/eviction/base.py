"""What an eviction is: it names the document tokens whose keys and values stay, per KV head."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ragkv.models.decoder import KV
from ragkv.prompt import Prompt


@dataclass(frozen=True)
class Eviction(ABC):
    """Keeps the prompt's prefix, its question, and as much of the document as there is room for.

    Attributes
    ----------
    capacity
        Tokens that stay in every layer and KV head, prefix and question included.
    capacity_ratio
        The same as a share of the prompt's tokens. One of the two is given.
    """

    capacity: int | None = None
    capacity_ratio: float | None = None

    def __post_init__(self) -> None:
        if (self.capacity is None) == (self.capacity_ratio is None):
            raise ValueError("give an eviction either capacity (tokens) or capacity_ratio (a share of the prompt)")
        if self.capacity_ratio is not None and not 0 < self.capacity_ratio <= 1:
            raise ValueError(
                f"capacity_ratio is {self.capacity_ratio}: it is a share of the prompt, above 0 and up to 1"
            )

    def tokens(self, prompt: Prompt) -> int:
        """The capacity in tokens."""
        if self.capacity is not None:
            return self.capacity
        assert self.capacity_ratio is not None
        return math.floor(self.capacity_ratio * len(prompt.ids))

    def room(self, prompt: Prompt) -> int:
        """How many of the document's tokens stay.

        Raises
        ------
        ValueError
            The capacity does not even hold the prefix and the question.
        """
        capacity, fixed = self.tokens(prompt), len(prompt.prefix) + len(prompt.question)
        if capacity < fixed:
            raise ValueError(
                f"the capacity is {capacity} tokens, but the prompt's prefix and question alone have {fixed}: raise it"
            )
        return min(capacity - fixed, len(prompt.document_span))

    @abstractmethod
    def choose(self, prompt: Prompt, queries: Tensor, keys: Tensor, positions: Tensor, scaling: float) -> Tensor:
        """The document's tokens that stay, ``(kv_heads, room)``, ascending.

        Parameters
        ----------
        queries
            Of the question's tokens, rotated, ``(1, heads, question, head_dim)``.
        keys
            Of all tokens, rotated, ``(1, kv_heads, tokens, head_dim)``.
        positions
            ``(question,)``: where the queries stand.
        scaling
            The model's factor of query-key products.
        """


def evict(eviction: Eviction, prompt: Prompt, layer: KV, queries: Tensor, positions: Tensor, scaling: float) -> KV:
    """A layer's keys and values without what is evicted, ``(1, kv_heads, kept, head_dim)`` each."""
    keys, values = layer
    tokens = torch.arange(len(prompt.ids), device=keys.device)
    span, kv_heads = prompt.document_span, keys.shape[1]
    chosen = eviction.choose(prompt, queries, keys, positions, scaling).to(keys.device) + span.start
    before, after = (part.expand(kv_heads, -1) for part in (tokens[: span.start], tokens[span.stop :]))
    kept = torch.cat((before, chosen, after), dim=1)[None, :, :, None]  # (1, kv_heads, kept, 1)
    rows = kept.expand(-1, -1, -1, keys.shape[3])
    return keys.gather(2, rows), values.gather(2, rows)
