"""A^3: the tokens that the question attends to (arXiv 2511.17560)."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from ragkv.selectors.base import Ask, ModelSizes, Observation, Pass, ScoringSelector, top


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
    keys
        ``"fresh"``, as in the paper: the layers up to the selection layer are computed for all tokens. ``"stored"``:
        only the question is, over the reused keys and values, and it is compared with the stored keys of the selection
        layer. No layer takes all tokens then, and a deeper selection layer costs next to nothing.
    """

    layer: int = 1
    kernel: int = 5
    per_head: bool = False
    keys: Literal["fresh", "stored"] = "fresh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}: use an odd width of at least 1")
        if self.keys not in ("fresh", "stored"):
            raise ValueError(f"keys is {self.keys!r}: choose 'fresh' or 'stored'")

    @property
    def observes(self) -> bool:
        return self.keys == "fresh"

    @property
    def layers(self) -> tuple[int, ...]:
        """With stored keys, it chooses before the first layer."""
        return super().layers if self.observes else (0,)

    def operations(self, shape: ModelSizes, tokens: int, question: int) -> float:
        """Those of the query-key products and, with stored keys, of the layers that the question goes through."""
        products = 2 * shape.heads * shape.head_dim * question * tokens
        if self.observes:
            return products
        return products + self.layer * question * (2 * shape.layer_weights + 4 * shape.heads * shape.head_dim * tokens)

    def choose(self, seen: Observation) -> Tensor | Generator[Pass, Any, Tensor]:
        return super().choose(seen) if self.observes else self._choose_by_stored_keys(seen)

    def _choose_by_stored_keys(self, seen: Observation) -> Generator[Pass, Observation, Tensor]:
        at_layer = yield Ask(self.layer)
        return top(self.scores(at_layer), self.budget(seen.prompt))

    def scores(self, seen: Observation) -> Tensor:
        attention = question_attention(seen, per_head=self.per_head)
        return avg_pool1d(attention[None], self.kernel, stride=1, padding=self.kernel // 2)[0]


def question_attention(seen: Observation, *, per_head: bool) -> Tensor:
    """How much the question attends to each document token, ``(document,)``, in float32.

    The question's queries attend to all keys behind the prefix, causally within the question itself.
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
