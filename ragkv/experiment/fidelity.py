"""What a model expects along full prefill's own answer (teacher forcing), and how far a method is from it there."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ragkv.fusion.cache import cache_argument, fork
from ragkv.fusion.decoding import Generation
from ragkv.fusion.prefill import Prefill
from ragkv.results.fidelity import fidelity


@torch.inference_mode()
def forced_logits(model: PreTrainedModel, prefill: Prefill, answer: Sequence[int]) -> Tensor:
    """The logits that predict each token of an answer, the tokens before it being those of the answer.

    One forward pass over the answer, whose tokens stand behind the prompt also where part of the cache was evicted. The
    prefill stays usable.

    Returns
    -------
    Tensor
        ``(answer, vocab)``: the first row is the prefill's own logits.

    Raises
    ------
    ValueError
        The answer is empty.
    """
    if not answer:
        raise ValueError("the answer has no tokens: give at least one")
    if len(answer) == 1:
        return prefill.logits
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([answer[:-1]], device=device)
    positions = torch.arange(prefill.tokens, prefill.tokens + ids.shape[1], device=device)[None]
    cache = {cache_argument(): fork(prefill.cache)}
    logits = model(input_ids=ids, position_ids=positions, use_cache=True, **cache).logits[0]
    return torch.cat([prefill.logits, logits.to(prefill.logits.device)])


@dataclass(frozen=True)
class Reference:
    """Full prefill's answer to one prompt, along which the other methods are compared with it.

    Attributes
    ----------
    answer
        Its greedy answer.
    ids
        The answer and the end-of-sequence id that ended it, if one did.
    logits
        ``(ids, vocab)``: full prefill's own, as `forced_logits` gives them.
    """

    answer: list[int]
    ids: list[int]
    logits: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel, prefill: Prefill, answer: Generation) -> "Reference":
        """The reference of a full prefill and the answer decoded from it."""
        ids = answer.ids if answer.stop is None else [*answer.ids, answer.stop]
        return cls(answer.ids, ids, forced_logits(model, prefill, ids))

    def fidelity(self, logits: Tensor) -> dict[str, float]:
        """The columns of a method with these logits ``(ids, vocab)``, see `ragkv.results.fidelity.fidelity`."""
        return fidelity(self.logits, logits, torch.tensor(self.ids, device=logits.device))

    def is_greedy_answer(self, logits: Tensor) -> bool:
        """Whether a method with these logits ``(ids, vocab)`` gives the same answer, and ends it at the same token."""
        return logits.argmax(-1).tolist() == self.ids
