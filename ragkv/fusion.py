"""fused_prefill: reuse what was computed offline, recompute what the selector names (arXiv 2511.17560).

Per layer, fresh keys and values are scattered over the reused ones, and every query attends to all keys at or before
its own position. Up to the selection layer all tokens behind the prefix are computed; from there on only the selected
ones and the question.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from ragkv import decoder
from ragkv.attention import get_backend
from ragkv.cache import KV, build_cache, scatter
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


class _Clock:
    """Seconds by stage, on the host's clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - start


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
    clock, attend = _Clock(), get_backend(backend)
    with clock("total"):
        _check(model, prompt, selector)
        with clock("open"):
            reuse = _open(model, prompt, store, selector) if selector.reuses else ReusedKV([], [], [])
        tokens = len(prompt.ids)
        rotary = decoder.Rotary(model, tokens)
        active = torch.arange(len(prompt.prefix) if selector.reuses else 0, tokens)  # what is being computed
        ids = torch.tensor(prompt.ids, device=model.model.embed_tokens.weight.device)
        hidden, layers = model.model.embed_tokens(ids[active])[None], []
        for index, layer in enumerate(model.model.layers):
            attention = layer.self_attn
            device = attention.q_proj.weight.device
            hidden, active = hidden.to(device), active.to(device)
            selects = selector.reuses and index == selector.layer

            if selects and not selector.observes:
                with clock("select"):
                    kept = _choose(selector, Observation(prompt, reuse.surprisal)).to(device)
                hidden, active = hidden[:, kept], active[kept]
            normed = layer.input_layernorm(hidden)
            keys, values = decoder.keys_values(attention, normed)
            fresh = rotary(keys, active), values
            with clock("load"):
                stored = _stored(reuse, index, prompt, active)
            if stored is not None:
                stored = rotary(stored[0], slice(stored[0].shape[2])), stored[1]
            fused = scatter(stored, fresh, active, tokens)
            if selects and selector.observes:
                with clock("select"):
                    question = decoder.queries(attention, normed[:, -len(prompt.question) :])
                    kept = _choose(selector, _observe(prompt, index, attention, rotary, question, fresh, reuse)).to(
                        device
                    )
                hidden, normed, active = hidden[:, kept], normed[:, kept], active[kept]

            queries = rotary(decoder.queries(attention, normed), active)
            hidden = decoder.finish(layer, hidden, attend(queries, *fused, active, attention.scaling))
            layers.append(fused)
        logits = decoder.logits(model, hidden[:, -1:])[:, 0]
        if logits.device.type == "cuda":
            torch.cuda.synchronize(logits.device)
    return Prefill(logits, build_cache(layers), active.cpu(), clock.seconds)


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
    segments = open_segments(store, Layout.of(model), needed)
    prefix, chunks = segments[: bool(prompt.prefix)], segments[bool(prompt.prefix) :]
    question = []
    if not selector.recomputes_question:
        context = needed[-1].context if needed else ()
        question.append(SegmentInMemory(*compute_segment(model, Segment(prompt.question, context))))
    return ReusedKV(prefix, chunks, question)


def _stored(reuse: ReusedKV, index: int, prompt: Prompt, active: Tensor) -> KV | None:
    """Stored keys (before rotation) and values of the positions that are not all computed afresh in this layer."""
    behind_prefix = len(prompt.ids) - len(prompt.prefix)
    load = reuse.prefix if len(active) >= behind_prefix else reuse.all
    return load(index, active.device)


def _observe(
    prompt: Prompt,
    index: int,
    attention: nn.Module,
    rotary: decoder.Rotary,
    question: Tensor,
    fresh: KV,
    reuse: ReusedKV,
) -> Observation:
    """What the selector sees of this layer; the stored document is loaded only if it asks for it."""
    start = len(prompt.prefix)

    def reused() -> KV:
        document = reuse.document(index, question.device)
        assert document is not None
        keys, values = document
        return rotary(keys, slice(start, start + keys.shape[2])), values

    span = prompt.question_span
    return Observation(
        prompt,
        reuse.surprisal,
        queries=rotary(question, slice(span.start, span.stop)),
        keys=fresh[0],
        values=fresh[1],
        reused=reused,
        scaling=attention.scaling,
    )


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
