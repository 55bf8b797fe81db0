"""Decoding from a prefilled cache, and the two times that users feel: TTFT and TPOT."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from time import perf_counter
from typing import Any, Literal

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from ragkv.fusion.cache import build_cache, cache_argument, fork
from ragkv.fusion.prefill import Prefill
from ragkv.fusion.sampling import Choose, Sampling, greedy
from ragkv.models.checks import check_room, check_type
from ragkv.models.limits import is_longrope
from ragkv.prompt import Prompt


@dataclass(frozen=True)
class Generation:
    """The result of decoding.

    Attributes
    ----------
    ids
        The new token ids, without the end-of-sequence token.
    tpot
        Seconds per output token: the time from the first new token to the last over the tokens after the first;
        None if there was only one. The prefill is not in it (TTFT is ``prefill.timings["total"]``).
    cache
        The prefill's cache with the new tokens added, except the last one if no token came after it.
    stop
        The end-of-sequence id that ended the answer; None if something else did.
    finish_reason
        ``stop`` if the model or `ended` ended the text, ``length`` if it was cut off after `max_new_tokens`.
    """

    ids: list[int]
    tpot: float | None
    cache: DynamicCache
    stop: int | None = None
    finish_reason: Literal["stop", "length"] = "stop"


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prefill: Prefill,
    *,
    max_new_tokens: int = 64,
    on_token: Callable[[int], None] | None = None,
    ended: Callable[[list[int]], bool] | None = None,
    sampling: Sampling | None = None,
) -> Generation:
    """Continue until the model's end of sequence or `max_new_tokens`. The prefill stays usable.

    A greedy answer to a prefill in a workspace goes on there if `max_new_tokens` more fit, every other one in memory
    of its own.

    Parameters
    ----------
    on_token
        Called with every new id as it comes, for streaming.
    ended
        Called after every new id with the ids so far; True ends the answer.
    sampling
        How tokens are drawn from their distribution; None takes the likeliest one each time.

    Raises
    ------
    ValueError
        `max_new_tokens` is 0, or leads to positions where the frequencies of a LongRoPE model change.
    """
    check_type(model)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: ask for at least one")
    if is_longrope(model.config):  # transformers' own generate computes everything again when the frequencies change
        check_room(model, prefill.tokens, max_new_tokens, "ask for fewer new tokens, or shorten the prompt")
    stops = stop_ids(model)
    choose = greedy if sampling is None else sampling.choice()
    token = choose(prefill.logits)
    workspace = prefill.workspace if sampling is None else None
    cache = fork(prefill.cache)
    # The last token's keys and values are never needed.
    if workspace is not None and prefill.tokens + max_new_tokens - 1 > workspace.memory.positions:
        workspace = None
    if workspace is None:
        following = _following(model, cache, token, prefill.tokens, choose)
    else:
        following = workspace.greedy(token, prefill.tokens, cache.get_seq_length())

    ids: list[int] = []
    steps = 0
    finish_reason: Literal["stop", "length"] = "stop"
    start = perf_counter()
    while token not in stops:
        ids.append(token)
        if on_token is not None:
            on_token(token)
        if ended is not None and ended(ids):
            break
        if len(ids) == max_new_tokens:
            finish_reason = "length"
            break
        token = next(following)
        steps += 1
    tpot = (perf_counter() - start) / steps if steps else None
    if workspace is not None:
        cache = build_cache(workspace.memory.cache(cache.get_seq_length() + steps))
    stop = token if token in stops else None
    return Generation(ids, tpot, cache, stop, finish_reason)


@contextmanager
def text_stream(
    tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], object] | None
) -> Iterator[Callable[[int], None] | None]:
    """`decode`'s ``on_token`` that calls `on_text` with whole words as they come; together they are the text."""
    if on_text is None:
        yield None
        return
    stream = _TextStream(tokenizer, on_text)
    yield lambda token: stream.put(torch.tensor([token]))
    stream.end()


class _TextStream(TextStreamer):
    """The library's streamer, which finds whole words, calling a function instead of printing."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], object]):
        super().__init__(tokenizer, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)


def _following(model: PreTrainedModel, cache: DynamicCache, token: int, position: int, choose: Choose) -> Iterator[int]:
    """The tokens that follow one at `position`, by the model's own forward over the cache, which grows."""
    device = model.model.embed_tokens.weight.device
    for current in count(position):  # not the cache's length: some of it may be evicted
        ids = torch.tensor([[token]], device=device)
        positions = torch.tensor([[current]], device=device)
        cached = {cache_argument(): cache}
        logits = model(input_ids=ids, position_ids=positions, use_cache=True, **cached).logits
        token = choose(logits[:, -1])
        yield token


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
    _check_same(prompt, prefill)
    generation = decode(model, prefill, max_new_tokens=max_new_tokens)
    return tokenizer.decode(generation.ids, skip_special_tokens=True)


def generate_inputs(prompt: Prompt, prefill: Prefill, *, rows: int = 1) -> dict[str, Any]:
    """Arguments of transformers' ``model.generate(**generate_inputs(prompt, prefill))``, to go on from a prefill.

    `generate` computes the tokens that are not in the cache and needs at least one, so the prompt's last token is left
    to it. The prefill stays usable.

    The arguments overrule what the checkpoint's generation config says about caches. Assisted decoding and prompt
    lookup are wrong with any cache that `generate` is given, so they are switched off: asking for them as well is a
    ``TypeError`` (multiple values).

    Parameters
    ----------
    rows
        The cache's batch size: the larger of ``num_beams`` and ``num_return_sequences``.

    Raises
    ------
    ValueError
        `prefill` belongs to another prompt, or part of its cache was evicted.
    """
    _check_same(prompt, prefill)
    cache = fork(prefill.cache)
    if cache.get_seq_length() != prefill.tokens:
        raise ValueError(
            f"the cache holds {cache.get_seq_length()} of the prompt's {prefill.tokens} tokens, and generate() would "
            "take the rest for new: prefill without eviction, or use decode()"
        )
    cache.crop(-1)
    if rows > 1:
        cache.batch_repeat_interleave(rows)
    ids = torch.tensor([prompt.ids], device=cache.layers[0].keys.device)
    unsupported = "assistant_model assistant_early_exit prompt_lookup_num_tokens cache_implementation".split()
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        cache_argument(): cache,
        "use_cache": True,
        **dict.fromkeys(unsupported),
    }


def _check_same(prompt: Prompt, prefill: Prefill) -> None:
    if prefill.tokens != len(prompt.ids):
        raise ValueError(
            f"the prefill is of {prefill.tokens} tokens, the prompt has {len(prompt.ids)}: prefill this prompt first"
        )
