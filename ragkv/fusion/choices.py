"""A selector's choices as rows of what is computed, without waiting for the GPU that they are made on.

What a GPU chose is known to the host only once the GPU has come that far. Waiting for it leaves the GPU without work
just where few tokens, and so little time, are left. So a choice is trusted at first to name each token once: then its
number of rows is known. Whether it did is looked at when all is computed; if not, the prefill is done again, with care.
"""

import torch
from torch import Tensor

from ragkv.selectors import Observation, Selector


class Choices:
    """The choices of one prefill.

    Parameters
    ----------
    trusting
        Take a choice as it is, and let `hold` say later whether it was right to.
    """

    def __init__(self, trusting: bool):
        self._trusting, self._right = trusting, list[Tensor]()

    def rows(self, selector: Selector, seen: Observation, active: Tensor) -> Tensor:
        """Which rows of the tokens at `active` go on: the chosen document tokens, sorted, and the question's.

        Raises
        ------
        ValueError
            A chosen token is not in the document, or was left out before; if not trusting.
        """
        span, rows, asked = seen.prompt.document_span, len(active), len(seen.prompt.question)
        first = rows - (asked if selector.recomputes_question else 1)  # of the question
        if not span:
            return torch.arange(first, rows, device=active.device)
        chosen = selector.choose(seen)  # from the host or the GPU: where it is, so that neither waits for the other
        if self._trusting and rows - asked == len(span):
            kept = self._sorted(chosen, len(span))
        else:
            kept = _marked(selector, chosen, active[: rows - asked].to(chosen.device) - span.start, len(span))
        return torch.cat((kept, torch.arange(first, rows, device=kept.device)))

    def hold(self) -> bool:
        """Whether all choices were what they were trusted to be; a GPU must have finished."""
        return all(map(bool, self._right))

    def _sorted(self, chosen: Tensor, tokens: int) -> Tensor:
        """The chosen ones of the document's tokens, in order, none of them left out before."""
        kept = chosen.sort().values
        self._right.append((kept.diff() > 0).all() & (kept >= 0).all() & (kept < tokens).all())
        return kept.clamp(0, tokens - 1)


def _marked(selector: Selector, chosen: Tensor, left: Tensor, tokens: int) -> Tensor:
    """The rows of the document's tokens `left` that were chosen, however often and in whatever order."""
    marked = torch.zeros(tokens, dtype=torch.bool, device=chosen.device)
    marked[chosen.clamp(0, tokens - 1)] = True
    kept = marked[left].nonzero()[:, 0]
    outside = ((chosen < 0) | (chosen >= tokens)).any()
    if outside | (marked.sum() != len(kept)):  # one look at what the device says
        raise ValueError(
            f"{type(selector).__name__} chose a token outside the document's {tokens}, or one that it had left out"
        )
    return kept
