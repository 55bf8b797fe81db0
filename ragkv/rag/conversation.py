"""A conversation: an answer, and the next turn run over the keys and values of the turns before it."""

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
    """An answer, and what it took.

    Attributes
    ----------
    question
        What was asked.
    chunks
        What the question was answered from, in the order of the prompt.
    retrieved
        Indices into `chunks`, the most like the question first.
    prompt
        All that the model was given: in a conversation also the turns before.
    hit_rate
        Share of the prompt's segments (its prefix and chunks) that were in the store; None where none was needed.
    seconds
        By stage until the first token: ``retrieve``, ``precompute`` (what the store did not have), ``prefill``.
    text
        What was answered.
    prefill, generation
        What a follow-up goes on from.
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
    def ttft(self) -> float:
        """Seconds from the question to the answer's first token."""
        return sum(self.seconds.values())

    @property
    def recomputed(self) -> int:
        """How many of the chunks' tokens were computed afresh in all layers."""
        span, selected = self.prompt.document_span, self.prefill.selected
        return int(((selected >= span.start) & (selected < span.stop)).sum())


@torch.inference_mode()
def go_on(model: PreTrainedModel, prefill: Prefill, generation: Generation, ids: list[int]) -> Prefill:
    """Run `ids` behind a prefill and what was generated from it; both stay usable.

    Returns
    -------
    Prefill
        Of the prompt, the generated tokens and `ids`. Only what is new was computed: `selected` are its positions.

    Raises
    ------
    ValueError
        There are no `ids`.
    """
    if not ids:
        raise ValueError("there is nothing to go on with: give at least one token")
    start = perf_counter()
    known = generation.cache.get_seq_length() - prefill.cache.get_seq_length()  # new tokens that were run already
    new, first = [*generation.ids[known:], *ids], prefill.tokens + known
    where = torch.arange(first, first + len(new))  # not the cache's length: some of it may be evicted
    cache, device = fork(generation.cache), model.model.embed_tokens.weight.device
    out = model(
        input_ids=torch.tensor([new], device=device),
        position_ids=where[None].to(device),
        use_cache=True,
        logits_to_keep=1,
        **{cache_argument(): cache},
    )
    logits = out.logits[:, -1]
    if logits.device.type == "cuda":
        torch.cuda.synchronize(logits.device)
    return Prefill(logits, cache, first + len(new), where, {"total": perf_counter() - start})
