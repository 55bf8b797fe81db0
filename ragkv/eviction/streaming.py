"""StreamingLLM: the beginning of the prompt and the most recent tokens stay (arXiv 2309.17453)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ragkv.eviction.base import Eviction
from ragkv.prompt import Prompt


@dataclass(frozen=True)
class StreamingLLM(Eviction):
    """Keeps the last tokens of the document, those next to the question."""

    def choose(self, prompt: Prompt, queries: Tensor, keys: Tensor, positions: Tensor, scaling: float) -> Tensor:
        """See `Eviction.choose`."""
        document = torch.arange(len(prompt.document_span))
        last = document[len(document) - self.document_tokens(prompt) :]
        return last.expand(keys.shape[1], -1)
