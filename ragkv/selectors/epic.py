"""EPIC: the first tokens of each chunk, which suffer most from computing chunks separately (arXiv 2410.15332)."""

from dataclasses import dataclass

from torch import Tensor

from ragkv.prompt import Prompt
from ragkv.selectors.base import Observation, Selector, chunk_indices, join, share_evenly


@dataclass(frozen=True)
class Epic(Selector):
    """Shares the budget evenly among the chunks and spends it on their beginnings.

    Attributes
    ----------
    tokens_per_chunk
        Take this many tokens of every chunk instead of a share of the document.
    """

    tokens_per_chunk: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens_per_chunk is not None and self.tokens_per_chunk < 0:
            raise ValueError(f"tokens_per_chunk is {self.tokens_per_chunk}: it cannot be negative")

    def shares(self, prompt: Prompt) -> list[int]:
        """How many tokens to recompute of each chunk."""
        lengths = [len(chunk) for chunk in prompt.chunks]
        if self.tokens_per_chunk is None:
            return share_evenly(self.budget(prompt), lengths)
        return [min(self.tokens_per_chunk, length) for length in lengths]

    def choose(self, seen: Observation) -> Tensor:
        chunks = zip(chunk_indices(seen.prompt), self.shares(seen.prompt), strict=True)
        return join([chunk[:share] for chunk, share in chunks])
