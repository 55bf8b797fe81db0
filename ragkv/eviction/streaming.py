"""StreamingLLM: the beginning and the most recent tokens (arXiv 2309.17453)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ragkv.eviction.base import Eviction
from ragkv.prompt import Prompt


@dataclass(frozen=True)
class StreamingLLM(Eviction):
    """The document's last tokens stay, those next to the question."""

    def choose(self, prompt: Prompt, queries: Tensor, keys: Tensor, positions: Tensor, scaling: float) -> Tensor:
        document = torch.arange(len(prompt.document_span))
        return document[len(document) - self.room(prompt) :].expand(keys.shape[1], -1)
