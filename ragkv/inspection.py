"""What the methods see and choose in one prompt: the question's attention layer by layer, and the selected tokens."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ragkv.fusion import fused_prefill
from ragkv.prompt import Prompt
from ragkv.selectors.a3 import question_attention
from ragkv.selectors.base import Observation, Selector
from ragkv.store import KVStore


@dataclass(frozen=True)
class _Watch(Selector):
    """Keeps the question's attention at one layer; all layers below it are computed for all tokens."""

    ratio: float = 1.0
    seen: list[Tensor] = field(default_factory=list)

    observes: ClassVar[bool] = True

    def choose(self, seen: Observation) -> Tensor:
        self.seen.append(question_attention(seen, per_head=True).cpu())
        return torch.arange(len(seen.prompt.document_span))


def attention_by_layer(model: PreTrainedModel, prompt: Prompt, store: KVStore) -> Tensor:
    """The question's attention over the document in a full prefill, ``(layers, document)``.

    Summed over heads (each with its own softmax over the tokens behind the prefix) and over the question's tokens.
    """
    layers = []
    for layer in range(model.config.num_hidden_layers):
        watch = _Watch(layer=layer)
        fused_prefill(model, prompt, store, watch)
        layers += watch.seen
    return torch.stack(layers)


def selected_document_tokens(prompt: Prompt, positions: list[int]) -> list[int]:
    """Positions in the prompt as indices within the document; the question's are left out."""
    span = prompt.document_span
    return [int(position) - span.start for position in positions if position in span]
