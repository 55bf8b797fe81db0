"""fused_prefill: reuse what was computed offline, recompute what the selector names (arXiv 2511.17560).

Per layer, fresh keys and values are scattered over the reused ones, and every query attends to all keys at or before
its own position. Up to the selection layer all tokens behind the prefix are computed; from there on only the selected
ones and the question.
"""

from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ragkv import decoder
from ragkv.attention import get_backend
from ragkv.cache import KV, build_cache
from ragkv.forward import Clock, Forward
from ragkv.loading import ReusedKV, SegmentInMemory, Segments, open_segments
from ragkv.models import check_model, check_prompt
from ragkv.precompute import compute_segment
from ragkv.prompt import Prompt, Segment
from ragkv.selectors import Observation, Selector
from ragkv.store import Layout


@dataclass(frozen=True)
class Prefill:
    """What a fused prefill gives.

    Attributes
    ----------
    logits
        ``(1, vocab)``, after the last token of the question.
    cache
        An ordinary transformers cache of all the prompt's tokens.
    selected
        ``(selected,)``: sorted positions that were recomputed in all layers, the question's included.
    timings
        Seconds by stage: ``open`` (finding and checking the stored segments), ``load`` (their keys and values to the
        device), ``select``, and ``total``, which includes the layers' own computation.
    """

    logits: Tensor
    cache: DynamicCache
    selected: Tensor
    timings: dict[str, float]


@torch.inference_mode()
def fused_prefill(
    model: PreTrainedModel, prompt: Prompt, store: Segments | None, selector: Selector, *, backend: str = "auto"
) -> Prefill:
    """Prefill `prompt` from stored segments, recomputing what `selector` chooses.

    Parameters
    ----------
    store
        Holds the prompt's segments (see `precompute`): a KVStore, or one read ahead (`ragkv.loading.ReadAhead`). None
        is enough for selectors that reuse nothing.
    backend
        Attention backend, see `ragkv.attention`.

    Raises
    ------
    ValueError
        The model or the prompt cannot be handled; the message says why.
    StoreError
        Segments are missing, or a file is damaged.
    """
    start, clock = perf_counter(), Clock()
    _check(model, prompt, selector)
    with clock("open"):
        reuse = _open(model, prompt, store, selector) if selector.reuses else ReusedKV([], [], [])
    forward = Forward(model, prompt, reuse, get_backend(backend), clock)
    active = torch.arange(len(prompt.prefix) if selector.reuses else 0, len(prompt.ids))  # what is being computed
    hidden = forward.embed(active)
    for index in range(model.config.num_hidden_layers):
        selects, choose = selector.reuses and index == selector.layer, None
        if selects and selector.observes:
            choose = partial(_observe, selector, forward, index)
        elif selects:
            with clock("select"):
                kept = _choose(selector, Observation(prompt, reuse.surprisal, look=forward.look))
            hidden, active = hidden[:, kept.to(hidden.device)], active[kept.to(active.device)]
        hidden, active = forward.layer(index, hidden, active, choose=choose)
    logits = decoder.logits(model, hidden[:, -1:])[:, 0]
    if logits.device.type == "cuda":
        torch.cuda.synchronize(logits.device)
    clock.seconds["total"] = perf_counter() - start
    return Prefill(logits, build_cache(forward.layers), active.cpu(), clock.seconds)


def _check(model: PreTrainedModel, prompt: Prompt, selector: Selector) -> None:
    check_model(model)
    check_prompt(model, prompt)
    layers = model.config.num_hidden_layers
    if selector.layer >= layers:
        raise ValueError(f"selection layer {selector.layer}: this model's layers are 0 to {layers - 1}")


def _open(model: PreTrainedModel, prompt: Prompt, store: Segments | None, selector: Selector) -> ReusedKV:
    """The prompt's stored segments; the question's own, computed now, where the selector reuses it."""
    if store is None:
        raise ValueError(f"{type(selector).__name__} reuses stored chunks: give it a KVStore")
    needed = prompt.segments(model.config.bos_token_id)
    segments = open_segments(store, Layout.of(model, store.format), needed)
    prefix, chunks = segments[: bool(prompt.prefix)], segments[bool(prompt.prefix) :]
    question = []
    if not selector.recomputes_question:
        context = needed[-1].context if needed else ()
        question.append(SegmentInMemory(*compute_segment(model, Segment(prompt.question, context))))
    return ReusedKV(prefix, chunks, question)


def _observe(
    selector: Selector, forward: Forward, index: int, attention: nn.Module, normed: Tensor, fresh: KV
) -> Tensor:
    """The rows that the selector keeps of what it sees; the stored document is loaded only if it asks for it."""
    prompt, rotary, start = forward.prompt, forward.rotary, len(forward.prompt.prefix)

    def reused() -> KV:
        document = forward.reuse.document(index, normed.device)
        assert document is not None
        keys, values = document
        return rotary(keys, slice(start, start + keys.shape[2])), values

    with forward.clock("select"):
        question, span = decoder.queries(attention, normed[:, -len(prompt.question) :]), prompt.question_span
        seen = Observation(
            prompt,
            forward.reuse.surprisal,
            queries=rotary(question, slice(span.start, span.stop)),
            keys=fresh[0],
            values=fresh[1],
            reused=reused,
            scaling=attention.scaling,
        )
        return _choose(selector, seen)


def _choose(selector: Selector, seen: Observation) -> Tensor:
    """Which rows behind the prefix go on: the chosen document tokens, sorted, and the question's."""
    document, question = len(seen.prompt.document_span), len(seen.prompt.question)
    rows = torch.arange(document, document + question)
    if not selector.recomputes_question:
        rows = rows[-1:]
    if document == 0:
        return rows
    chosen = torch.unique(selector.choose(seen).cpu())
    if chosen.numel() and not (chosen[0] >= 0 and chosen[-1] < document):
        raise ValueError(f"{type(selector).__name__} chose a token outside the document's {document}")
    return torch.cat((chosen, rows))
