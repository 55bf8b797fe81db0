"""SnapKV: each KV head keeps the tokens that the question attends to (arXiv 2404.14469)."""

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
    """Keeps the document tokens with the highest attention from the question, pooled along the document.

    The question is SnapKV's observation window. The score of a KV head is the sum over the query heads that share it.

    Attributes
    ----------
    pooling
        ``"avg"`` or ``"max"``, over `kernel` neighbouring tokens.
    kernel
        The width of the pooling, an odd number; 1 means no pooling.
    block
        Tokens are kept or evicted in blocks of this many neighbours, by their mean score. The last block that is kept
        is cut to fit the capacity.
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
        """See `Eviction.choose`."""
        count = self.document_tokens(prompt)
        self._check_block(self.tokens(prompt))
        span, kv_heads = prompt.document_span, keys.shape[1]
        if not span:
            return torch.empty(kv_heads, 0, dtype=torch.long)
        weights = attention_weights(queries, keys, positions, scaling)[:, span.start : span.stop]  # (heads, document)
        scores = self._pool(weights.unflatten(0, (kv_heads, -1)).sum(1))  # (kv_heads, document)
        block_scores = avg_pool1d(scores, self.block, ceil_mode=True)  # (kv_heads, blocks)
        block_ranks = block_scores.sort(descending=True, stable=True).indices.argsort()
        within_block = torch.arange(len(span), device=scores.device) % self.block
        ranks = block_ranks.repeat_interleave(self.block, dim=1)[:, : len(span)] * self.block + within_block
        return ranks.argsort()[:, :count].sort().values

    def _pool(self, scores: Tensor) -> Tensor:
        pool = avg_pool1d if self.pooling == "avg" else max_pool1d
        return pool(scores, self.kernel, stride=1, padding=self.kernel // 2)
