"""How the next token is chosen: the likeliest one, or one drawn at random as transformers' `generate` does."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

Choose = Callable[[Tensor], int]  # the next token, from logits (1, vocab)


def greedy(logits: Tensor) -> int:
    """The likeliest token."""
    return int(logits.argmax(-1))


@dataclass(frozen=True)
class Sampling:
    """Draw each token from the model's distribution. The same seed and the same prefill give the same answer.

    Attributes
    ----------
    temperature
        Divides the logits: below 1 the likelier tokens become likelier still.
    top_p
        Draw among the likeliest tokens that together have at least this probability; 1 allows all.
    top_k
        Draw among this many of the likeliest tokens; None allows all.
    seed
        Of the random numbers.

    Raises
    ------
    ValueError
        An option has no meaning.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}: give a number above 0, or decode greedily")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: give a probability above 0, at most 1")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}: give at least 1, or None for all tokens")

    def choice(self) -> Choose:
        """A function that draws the tokens of one answer, one after the other, from logits ``(1, vocab)``.

        Numbers are drawn on the CPU, so that every device draws the same.
        """
        warpers = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        if self.top_k is not None:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(float(self.top_p)))
        random = torch.Generator().manual_seed(self.seed)
        no_ids = torch.empty(1, 0, dtype=torch.long)

        def draw(logits: Tensor) -> int:
            probabilities = warpers(no_ids, logits.float().cpu()).softmax(-1)
            return int(torch.multinomial(probabilities, 1, generator=random))

        return draw
