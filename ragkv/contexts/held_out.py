"""Training is watched on texts that are not trained on: the best context is kept, and it ends when nothing improves."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.contexts.exercises import Exercises
from ragkv.contexts.loss import divergences
from ragkv.models.rotary import Rotary

EXERCISES = 8  # batches; half of them behind the prefix, half behind BOS


class HeldOut:
    """Exercises made from held-out texts, always the same ones.

    Parameters
    ----------
    texts
        Token ids of each text.
    exercises
        Options of `Exercises`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rotary: list[Rotary],
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[Sequence[int]],
        **exercises: Any,
    ):
        drawn = Exercises(tokenizer, texts, **exercises | {"seed": 0, "open_share": 0.0})
        self._model = model
        self._rotary = rotary
        self._exercises = [drawn.draw() for _ in range(EXERCISES)]

    @torch.no_grad()
    def divergence(self, context: Tensor) -> float:
        """The mean divergence of plain reuse from a full prefill along the answers, in nats."""
        total = 0.0
        for number, exercise in enumerate(self._exercises):
            behind_prefix = number % 2 == 0
            answer, _ = divergences(self._model, self._rotary, context, exercise, behind_prefix=behind_prefix)
            total += answer.item()
        return total / len(self._exercises)
