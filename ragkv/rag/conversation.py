"""One turn of a conversation, and how the next turn continues from its keys and values."""

from dataclasses import dataclass
from time import perf_counter

import torch
from transformers import PreTrainedModel

from ragkv.fusion.cache import cache_argument, fork
from ragkv.fusion.decoding import Generation
from ragkv.fusion.prefill import Prefill
from ragkv.prompt import Prompt
from ragkv.prompt.documents import Chunk


@dataclass(frozen=True)
class Answer:
    """An answer, with the chunks it was based on and the time it took.

    Attributes
    ----------
    question
        The question as it was asked.
    chunks
        The retrieved chunks, in the order in which they stand in the prompt.
    retrieved
        Indices into `chunks`, the best match first.
    prompt
        Everything that the model was given; in a conversation, this includes the turns before.
    hit_rate
        The share of the prompt's segments (its prefix and chunks) that were already stored; None if none was needed.
    seconds
        Seconds until the first token, by stage: ``retrieve``, ``precompute`` (segments not yet stored), ``prefill``.
    text
        The answer.
    prefill, generation
        The state that a follow-up continues from.
    """

    question: str
    chunks: tuple[Chunk, ...]
    retrieved: tuple[int, ...]
    prompt: Prompt
    hit_rate: float | None
    seconds: dict[str, float]
    text: str
    prefill: Prefill
    generation: Generation

    @property
    def finish_reason(self) -> str:
        """``stop`` if the model ended its answer, ``length`` if it was cut off at the maximum length."""
        return self.generation.finish_reason

    @property
    def ttft(self) -> float:
        """Time to first token: seconds from the question to the first token of the answer."""
        return sum(self.seconds.values())

    @property
    def recomputed(self) -> int:
        """The number of the chunks' tokens that were recomputed in all layers."""
        span = self.prompt.document_span
        selected = self.prefill.selected
        return int(((selected >= span.start) & (selected < span.stop)).sum())

    def __repr__(self) -> str:
        cut = ", cut off at its maximum length" if self.finish_reason == "length" else ""
        document = len(self.prompt.document_span)
        recomputed = f"{self.recomputed} of {document} tokens of {len(self.chunks)} chunks recomputed"
        return f"Answer({self.text!r}{cut}; {recomputed}; first token after {self.ttft:.3g} s)"


@torch.inference_mode()
def extend(model: PreTrainedModel, prefill: Prefill, generation: Generation, ids: list[int]) -> Prefill:
    """Append `ids` to a prefill and the tokens generated from it. Both stay usable.

    Returns
    -------
    Prefill
        Of the prompt, the generated tokens and `ids`. Its ``selected`` are the positions that were computed now: those
        of `ids`, and of generated tokens that the cache does not contain yet.

    Raises
    ------
    ValueError
        `ids` is empty.
    """
    if not ids:
        raise ValueError("there are no tokens to continue with: give at least one")
    start = perf_counter()
    # If decoding stopped at max_new_tokens, the last generated token has not run through the model yet.
    cached = generation.cache.get_seq_length() - prefill.cache.get_seq_length()
    new_ids = [*generation.ids[cached:], *ids]
    first = prefill.tokens + cached  # not the cache's length: an eviction may have shortened the cache
    positions = torch.arange(first, first + len(new_ids))
    cache = fork(generation.cache)
    device = model.model.embed_tokens.weight.device
    output = model(
        input_ids=torch.tensor([new_ids], device=device),
        position_ids=positions[None].to(device),
        use_cache=True,
        logits_to_keep=1,
        **{cache_argument(): cache},
    )
    logits = output.logits[:, -1]
    if logits.device.type == "cuda":
        torch.cuda.synchronize(logits.device)
    return Prefill(logits, cache, first + len(new_ids), positions, {"total": perf_counter() - start})
