"""The tokens that are computed together: each is a row of the hidden states, prompt after prompt."""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor


class Rows:
    """Some tokens of one or several prompts.

    The keys and values of all prompts lie end to end in the memory of a layer, one token in a slot.

    Parameters
    ----------
    positions
        ``(rows,)``: the position of each token within its prompt, ascending within a prompt.
    counts
        How many of these tokens each prompt has; may be 0.
    extents
        The slots of each prompt.

    Attributes
    ----------
    spans
        The rows of each prompt.
    by_prompt
        The positions of each prompt's tokens.
    """

    def __init__(self, positions: Tensor, counts: Sequence[int], extents: Sequence[range]):
        self.positions = positions
        self.extents = extents
        self.spans = [range(start, stop) for start, stop in pairwise(accumulate(counts, initial=0))]
        self.by_prompt = positions.split(list(counts))

    @classmethod
    def of(cls, by_prompt: Sequence[Tensor], extents: Sequence[range]) -> "Rows":
        """The tokens at these positions of each prompt."""
        positions = by_prompt[0] if len(by_prompt) == 1 else torch.cat(list(by_prompt))
        return cls(positions, [len(part) for part in by_prompt], extents)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def of_one_prompt(self) -> bool:
        """Whether there is only one prompt, so that slots are positions."""
        return len(self.extents) == 1

    @cached_property
    def firsts(self) -> Tensor:
        """``(rows,)``: the slot of the first token of each row's prompt."""
        if self.of_one_prompt:
            return torch.zeros_like(self.positions)
        starts = torch.tensor([extent.start for extent in self.extents])
        counts = torch.tensor([len(span) for span in self.spans])
        return starts.repeat_interleave(counts).to(self.positions.device, non_blocking=True)

    @cached_property
    def slots(self) -> Tensor:
        """``(rows,)``: where each row's keys and values lie."""
        return self.positions if self.of_one_prompt else self.positions + self.firsts

    def to(self, device: torch.device) -> "Rows":
        """The same rows on a device."""
        if self.positions.device == device:
            return self
        return Rows(self.positions.to(device), [len(span) for span in self.spans], self.extents)

    def keep(self, kept: Sequence[Tensor]) -> tuple[Tensor, "Rows"]:
        """Keep some rows of each prompt.

        Parameters
        ----------
        kept
            For each prompt, which of its rows stay, counted from its first one, on any device.

        Returns
        -------
        indices
            ``(kept,)``: the rows that stay, counted from the first of all.
        rows
            What stays.
        """
        device = self.positions.device
        by_prompt = [
            part.to(device, non_blocking=device.type == "cuda") + span.start
            for part, span in zip(kept, self.spans, strict=True)
        ]
        indices = torch.cat(by_prompt)
        return indices, Rows(self.positions[indices], [len(part) for part in kept], self.extents)

    def last(self, hidden: Tensor) -> Tensor:
        """The last row of each prompt, of ``(1, rows, hidden)``."""
        return torch.cat([hidden[:, span.stop - 1 : span.stop] for span in self.spans], dim=1)


def extents_of(lengths: Sequence[int]) -> list[range]:
    """The slots of prompts of these lengths, end to end."""
    return [range(start, stop) for start, stop in pairwise(accumulate(lengths, initial=0))]
