"""What a model expects along an answer that is already known, from a prefilled cache (teacher forcing)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ragkv.fusion.cache import cache_argument, fork
from ragkv.fusion.prefill import Prefill


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
