"""Surprisal: the tokens that were least predictable within their own chunk, known offline."""

from dataclasses import dataclass

from torch import Tensor

from ragkv.selectors.base import Observation, Selector, chunk_indices, join, share_by_length, top


@dataclass(frozen=True)
class Surprisal(Selector):
    """Shares the budget among chunks by length (largest remainders); takes the highest -log p of each chunk."""

    def choose(self, seen: Observation) -> Tensor:
        scores = seen.surprisal()
        lengths = [len(chunk) for chunk in seen.prompt.chunks]
        shares = share_by_length(self.budget(seen.prompt), lengths)
        chunks = zip(chunk_indices(seen.prompt), shares, strict=True)
        return join([chunk[top(scores[chunk], share)] for chunk, share in chunks])
