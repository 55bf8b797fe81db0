"""Greedy decoding from a prefilled cache, and the two times that users feel: TTFT and TPOT."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from ragkv.cache import fork
from ragkv.fusion import Prefill
from ragkv.prompt import Prompt


@dataclass(frozen=True)
class Generation:
    """What was generated.

    Attributes
    ----------
    ids
        The new token ids, without the end-of-sequence token.
    tpot
        Seconds per output token: the time from the first new token to the last over the tokens after the first;
        None if there was only one. The prefill is not in it (TTFT is ``prefill.timings["total"]``).
    """

    ids: list[int]
    tpot: float | None


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prefill: Prefill,
    *,
    max_new_tokens: int = 64,
    on_token: Callable[[int], None] | None = None,
    ended: Callable[[list[int]], bool] | None = None,
) -> Generation:
    """Continue greedily until the model's end of sequence or `max_new_tokens`. The prefill stays usable.

    Parameters
    ----------
    on_token
        Called with every new id as it comes, for streaming.
    ended
        Says of the ids so far whether they are the whole answer; asked after every one.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: ask for at least one")
    stops, steps = stop_ids(model), 0
    step = _cached(model, fork(prefill.cache)) if prefill.workspace is None else prefill.workspace.step
    token, ids, start = int(prefill.logits.argmax(-1)), [], perf_counter()
    while token not in stops:
        ids.append(token)
        if on_token is not None:
            on_token(token)
        if len(ids) == max_new_tokens or (ended is not None and ended(ids)):
            break
        token = int(step(token, prefill.tokens + steps).argmax(-1))
        steps += 1
    return Generation(ids, (perf_counter() - start) / steps if steps else None)


def _cached(model: PreTrainedModel, cache: DynamicCache) -> Callable[[int, int], Tensor]:
    """The model's own forward over one token, behind all in the cache."""
    device = model.model.embed_tokens.weight.device

    def step(token: int, position: int) -> Tensor:
        last = torch.tensor([[token]], device=device)
        where = torch.tensor([[position]], device=device)  # not the cache's length: some may be evicted
        return model(input_ids=last, position_ids=where, past_key_values=cache, use_cache=True).logits[:, -1]

    return step


def stop_ids(model: PreTrainedModel) -> set[int]:
    """The ids that end a text."""
    eos = model.generation_config.eos_token_id if model.generation_config else model.config.eos_token_id
    return set(eos) if isinstance(eos, list) else {eos} - {None}


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    prefill: Prefill,
    *,
    max_new_tokens: int = 64,
) -> str:
    """The text that follows `prompt`, greedily.

    Raises
    ------
    ValueError
        `prefill` belongs to another prompt.
    """
    if prefill.tokens != len(prompt.ids):
        raise ValueError(
            f"the prefill is of {prefill.tokens} tokens, the prompt has {len(prompt.ids)}: prefill this prompt first"
        )
    generation = decode(model, prefill, max_new_tokens=max_new_tokens)
    return tokenizer.decode(generation.ids, skip_special_tokens=True)
