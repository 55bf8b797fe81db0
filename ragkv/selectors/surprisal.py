"""Surprisal: the tokens that their own chunk did not foresee, known offline."""

from dataclasses import dataclass

from torch import Tensor

from ragkv.selectors.base import Observation, Selector, chunk_indices, join, share_by_length, top


@dataclass(frozen=True)
class Surprisal(Selector):
    """The budget is shared among chunks by length (largest remainders), and goes to the highest -log p in each."""

    def choose(self, seen: Observation) -> Tensor:
        prompt, scores = seen.prompt, seen.surprisal()
        shares = share_by_length(self.budget(prompt), [len(chunk) for chunk in prompt.chunks])
        chunks = zip(chunk_indices(prompt), shares, strict=True)
        return join([chunk[top(scores[chunk], share)] for chunk, share in chunks])
