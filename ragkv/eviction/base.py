"""The interface of evictions: each KV head keeps the document tokens that the eviction chooses."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ragkv.models.decoder import KV
from ragkv.prompt import Prompt


@dataclass(frozen=True)
class Eviction(ABC):
    """Keeps the prompt's prefix, its question, and as many of the document's tokens as the capacity allows.

    Attributes
    ----------
    capacity
        Number of tokens that every layer and KV head keeps, prefix and question included.
    capacity_ratio
        The same as a share of the prompt's tokens. Give one of the two.
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

    def document_tokens(self, prompt: Prompt) -> int:
        """How many of the document's tokens stay.

        Raises
        ------
        ValueError
            The capacity is too small even for the prefix and the question.
        """
        capacity = self.tokens(prompt)
        always_kept = len(prompt.prefix) + len(prompt.question)
        if capacity < always_kept:
            raise ValueError(
                f"the capacity is {capacity} tokens, but the prompt's prefix and question alone have {always_kept}: "
                "raise it"
            )
        return min(capacity - always_kept, len(prompt.document_span))

    @abstractmethod
    def choose(self, prompt: Prompt, queries: Tensor, keys: Tensor, positions: Tensor, scaling: float) -> Tensor:
        """Choose the document tokens that stay.

        Parameters
        ----------
        queries
            Of the question's tokens, after rotation, ``(1, heads, question, head_dim)``.
        keys
            Of all tokens, after rotation, ``(1, kv_heads, tokens, head_dim)``.
        positions
            Of the queries, ``(question,)``.
        scaling
            The model's factor for query-key products.

        Returns
        -------
        Tensor
            Indices into the document, ascending, ``(kv_heads, document_tokens)``.
        """


def evict(eviction: Eviction, prompt: Prompt, layer: KV, queries: Tensor, positions: Tensor, scaling: float) -> KV:
    """A layer's keys and values without the evicted tokens, ``(1, kv_heads, kept, head_dim)`` each."""
    keys, values = layer
    span, kv_heads = prompt.document_span, keys.shape[1]
    chosen = eviction.choose(prompt, queries, keys, positions, scaling).to(keys.device) + span.start
    tokens = torch.arange(len(prompt.ids), device=keys.device)
    before = tokens[: span.start].expand(kv_heads, -1)
    after = tokens[span.stop :].expand(kv_heads, -1)
    kept = torch.cat((before, chosen, after), dim=1)[None, :, :, None]  # (1, kv_heads, kept, 1)
    rows = kept.expand(-1, -1, -1, keys.shape[3])
    return keys.gather(2, rows), values.gather(2, rows)
