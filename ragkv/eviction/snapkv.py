"""SnapKV: the tokens that the question attends to, per KV head (arXiv 2404.14469)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from ragkv.eviction.base import Eviction
from ragkv.models.attention import attention_weights
from ragkv.prompt import Prompt


@dataclass(frozen=True)
class SnapKV(Eviction):
    """The question is the observation window; its attention, pooled along the document, says what stays.

    A KV head's score is the sum over the query heads that it serves: keys and values are never repeated.

    Attributes
    ----------
    pooling
        ``"avg"`` or ``"max"`` over `kernel` neighbouring tokens.
    kernel
        Odd; 1 pools nothing.
    block
        So many neighbouring tokens stay or go together, by their mean score; the last block that stays is cut to fit.
    """

    pooling: Literal["avg", "max"] = "avg"
    kernel: int = 5
    block: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in ("avg", "max"):
            raise ValueError(f"pooling is {self.pooling!r}: choose 'avg' or 'max'")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}: use an odd width of at least 1")
        if self.block < 1:
            raise ValueError(f"block is {self.block}: it is a number of tokens, at least 1")
        self._check_block(self.capacity)

    def _check_block(self, capacity: int | None) -> None:
        if capacity is not None and self.block > capacity:
            raise ValueError(f"a block of {self.block} tokens is larger than the capacity of {capacity}: lower it")

    def choose(self, prompt: Prompt, queries: Tensor, keys: Tensor, positions: Tensor, scaling: float) -> Tensor:
        room, span = self.room(prompt), prompt.document_span
        self._check_block(self.tokens(prompt))
        if not span:
            return torch.empty(keys.shape[1], 0, dtype=torch.long)
        weights = attention_weights(queries, keys, positions, scaling)[:, span.start : span.stop]  # (heads, document)
        scores = self._pool(weights.unflatten(0, (keys.shape[1], -1)).sum(1))  # (kv_heads, document)
        blocks = avg_pool1d(scores, self.block, ceil_mode=True)  # (kv_heads, blocks)
        rank = blocks.sort(descending=True, stable=True).indices.argsort()
        within = torch.arange(len(span), device=rank.device) % self.block
        order = rank.repeat_interleave(self.block, dim=1)[:, : len(span)] * self.block + within
        return order.argsort()[:, :room].sort().values

    def _pool(self, scores: Tensor) -> Tensor:
        pool = avg_pool1d if self.pooling == "avg" else max_pool1d
        return pool(scores, self.kernel, stride=1, padding=self.kernel // 2)
