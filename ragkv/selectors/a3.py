"""A^3: the tokens that the question attends to (arXiv 2511.17560)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from ragkv.selectors.base import ModelSizes, Observation, ScoringSelector


@dataclass(frozen=True)
class A3(ScoringSelector):
    """Attention of the question at an early layer, summed over the question's tokens and smoothed.

    Attributes
    ----------
    kernel
        Width of the average pooling along the document, odd.
    per_head
        Take a softmax per head and sum the weights. By default all heads are laid side by side, as one head of
        ``heads * head_dim`` dimensions, before one softmax.
    """

    layer: int = 1
    kernel: int = 5
    per_head: bool = False

    observes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}: use an odd width of at least 1")

    def operations(self, shape: ModelSizes, tokens: int, question: int) -> float:
        """Those of the query-key products."""
        return 2 * shape.heads * shape.head_dim * question * tokens

    def scores(self, seen: Observation) -> Tensor:
        attention = question_attention(seen, per_head=self.per_head)
        return avg_pool1d(attention[None], self.kernel, stride=1, padding=self.kernel // 2)[0]


def question_attention(seen: Observation, *, per_head: bool) -> Tensor:
    """How much the question attends to each document token, ``(document,)``, in float32.

    The question's queries attend to all fresh keys behind the prefix, causally within the question itself.
    """
    assert seen.queries is not None and seen.keys is not None
    kv_heads, tokens = seen.keys.shape[1:3]
    heads, question = seen.queries.shape[1:3]
    grouped = seen.queries[0].float().unflatten(0, (kv_heads, -1))  # (kv_heads, group, question, head_dim)
    keys = seen.keys[0].float()[:, None]  # (kv_heads, 1, tokens, head_dim)
    if per_head:
        products = (grouped @ keys.mT).flatten(0, 1)  # (heads, question, tokens)
        scaling = seen.scaling
    else:  # heads side by side are one long head: their products add up, and the queries of a group share a key
        products = (grouped.sum(1, keepdim=True) @ keys.mT).sum((0, 1))[None]  # (1, question, tokens)
        scaling = seen.scaling / heads**0.5
    future = torch.ones(question, tokens, dtype=torch.bool, device=products.device).triu(tokens - question + 1)
    weights = (products * scaling).masked_fill(future, float("-inf")).softmax(-1)
    return weights.sum((0, 1))[: tokens - question]
