"""EPIC: the first tokens of each chunk, where computing chunks apart does most harm (arXiv 2410.15332)."""

from dataclasses import dataclass

from torch import Tensor

from ragkv.prompt import Prompt
from ragkv.selectors.base import Observation, Selector, chunk_indices, join, share_evenly


@dataclass(frozen=True)
class Epic(Selector):
    """The budget is shared evenly among the chunks and spent on their beginnings.

    Attributes
    ----------
    tokens_per_chunk
        So many tokens of every chunk, instead of a share of the document.
    """

    tokens_per_chunk: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens_per_chunk is not None and self.tokens_per_chunk < 0:
            raise ValueError(f"tokens_per_chunk is {self.tokens_per_chunk}: it cannot be negative")

    def shares(self, prompt: Prompt) -> list[int]:
        """Tokens to recompute per chunk."""
        lengths = [len(chunk) for chunk in prompt.chunks]
        if self.tokens_per_chunk is None:
            return share_evenly(self.budget(prompt), lengths)
        return [min(self.tokens_per_chunk, length) for length in lengths]

    def choose(self, seen: Observation) -> Tensor:
        prompt = seen.prompt
        return join([chunk[:share] for chunk, share in zip(chunk_indices(prompt), self.shares(prompt), strict=True)])
