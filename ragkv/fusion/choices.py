"""A selector's choices as rows of what is computed, without waiting for the GPU that they are made on.

The host knows what a GPU chose only once the GPU is that far. If the host waited, the GPU would run out of work just
where few tokens, and so little time, are left. So a choice is trusted at first to name each token once, which tells how
many rows it has. Whether that was true is checked when everything is computed. If it was not, the prefill runs again,
and each choice is checked before it is used.
"""

import torch
from torch import Tensor

from ragkv.prompt import Prompt
from ragkv.selectors import Selector


class Choices:
    """The choices of one prefill, or of several that run together.

    Parameters
    ----------
    trusting
        Use a choice unchecked; `valid` then tells whether that was right.
    """

    def __init__(self, trusting: bool):
        self._trusting = trusting
        self._trusted_rows: list[tuple[Tensor, int]] = []  # of each choice, and the number of document tokens

    def rows(self, selector: Selector, prompt: Prompt, chosen: Tensor | None, active: Tensor) -> Tensor:
        """The rows of a prompt that go on: those of the chosen document tokens, sorted, and those of the question.

        Parameters
        ----------
        chosen
            As `Selector.choose` returns it; it stays on its device, host or GPU, so that neither waits for the other.
            None if there is no document.
        active
            The positions of the prompt's rows.

        Raises
        ------
        ValueError
            A chosen token is not in the document, or was dropped before. Only if not trusting.
        """
        document = prompt.document_span
        candidates = len(active) - len(prompt.question)  # they come before the question
        first = candidates if selector.recomputes_question else len(active) - 1
        if chosen is None:
            return torch.arange(first, len(active), device=active.device)
        if self._trusting and candidates == len(document):
            kept = self._trusted(chosen, len(document))
        else:
            kept = _checked(selector, chosen, active[:candidates].to(chosen.device) - document.start, len(document))
        return torch.cat((kept, torch.arange(first, len(active), device=kept.device)))

    def valid(self) -> bool:
        """True if every trusted choice was valid. It waits for the GPU, so ask once everything else is started."""
        checks = [
            (kept.diff() > 0).all() & (kept >= 0).all() & (kept < tokens).all() for kept, tokens in self._trusted_rows
        ]
        return not checks or bool(torch.stack(checks).all())

    def _trusted(self, chosen: Tensor, tokens: int) -> Tensor:
        """The rows of chosen tokens, all of which are still there. Each is assumed to be chosen once."""
        kept = chosen.sort().values
        self._trusted_rows.append((kept, tokens))
        return kept.clamp(0, tokens - 1)


def _checked(selector: Selector, chosen: Tensor, candidates: Tensor, tokens: int) -> Tensor:
    """The rows of the chosen ones among the candidates, however often and in whatever order they are named."""
    marked = torch.zeros(tokens, dtype=torch.bool, device=chosen.device)
    marked[chosen.clamp(0, tokens - 1)] = True
    kept = marked[candidates].nonzero()[:, 0]
    outside = ((chosen < 0) | (chosen >= tokens)).any()
    if outside | (marked.sum() != len(kept)):  # the only time that the host waits for the device
        raise ValueError(
            f"{type(selector).__name__} chose a token outside the document's {tokens}, or one that it had left out"
        )
    return kept
