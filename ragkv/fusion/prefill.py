"""fused_prefill: reuse what was computed offline, recompute what the selector names (arXiv 2511.17560).

Per layer, fresh keys and values are written over the stored ones, and every query attends to all keys at or before its
own position. Below the selection layer all tokens behind the prefix are computed; from there on only the selected ones
and the question.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ragkv.eviction import Eviction, evict
from ragkv.fusion.cache import build_cache
from ragkv.fusion.choices import Choices
from ragkv.fusion.clock import Clock
from ragkv.fusion.forward import Forward, Watch
from ragkv.fusion.memory import OwnMemory
from ragkv.fusion.selection import Selection
from ragkv.fusion.workspace import Workspace
from ragkv.loading.reused import ReusedKV, open_segments
from ragkv.loading.segments import SegmentInMemory, Segments
from ragkv.models import decoder
from ragkv.models.attention import get_backend
from ragkv.models.checks import check_architecture, check_model, check_prompt, check_type
from ragkv.models.decoder import KV
from ragkv.models.out_of_memory import explained
from ragkv.models.segment_pass import compute_segment
from ragkv.prompt import Prompt, Segment
from ragkv.selectors import Selector
from ragkv.store import Layout

_SMALLER = "give fewer or shorter chunks, or spread the model over several GPUs (load_model's device_map)"


@dataclass(frozen=True)
class Prefill:
    """The result of a fused prefill.

    Attributes
    ----------
    logits
        ``(1, vocab)``, after the last token of the question.
    cache
        An ordinary transformers cache of all the prompt's tokens, or of those that an eviction kept.
    tokens
        The number of the prompt's tokens, which is the position of the next one.
    selected
        ``(selected,)``: sorted positions that were recomputed in all layers, the question's included.
    timings
        Seconds by stage: ``open`` (finding and checking the stored segments), ``load`` (their keys and values to the
        device), ``select``, and ``total``, which includes the layers' own computation.
    workspace
        The workspace that the cache lies in, if any: `ragkv.decode` goes on there if the answer fits.
    """

    logits: Tensor
    cache: DynamicCache
    tokens: int
    selected: Tensor
    timings: dict[str, float]
    workspace: Workspace | None = None

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values that decoding goes on from."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


@torch.inference_mode()
def fused_prefill(
    model: PreTrainedModel,
    prompt: Prompt,
    store: Segments | None,
    selector: Selector,
    *,
    eviction: Eviction | None = None,
    backend: str = "auto",
    workspace: Workspace | None = None,
) -> Prefill:
    """Prefill `prompt` from stored segments, recomputing what `selector` chooses.

    Parameters
    ----------
    store
        Holds the prompt's segments (see `precompute`): a KVStore, or one that is read ahead (see
        `ragkv.loading.prefetch`). None is enough for selectors that reuse nothing.
    eviction
        Leaves part of the document's keys and values out of the cache, layer by layer, see `ragkv.eviction`.
    backend
        Attention backend, see `ragkv.models.attention`.
    workspace
        Memory and CUDA graphs that prefills share, one at a time: faster where few tokens are recomputed. The next
        prefill in it overwrites this one's cache.

    Raises
    ------
    ValueError
        The model or the prompt cannot be handled; the message says why.
    StoreError
        Segments are missing, or a file is damaged.
    torch.OutOfMemoryError
        The GPU's memory is full; the message says what helps.
    """
    start = perf_counter()
    check_type(model)
    with explained(f"a prefill of {len(prompt.ids)} tokens", model.device, _SMALLER):
        segments = prompt.segments(model.config.bos_token_id)
        _check(model, prompt, segments, selector, eviction, workspace)
        clock = Clock(set(decoder.devices(model)))
        with clock("open"):
            reused = _open(model, prompt, segments, store, selector, workspace)
        attend = get_backend(backend)

        def run(choices: Choices) -> Prefill | None:
            """The prefill; None if a choice that was trusted turns out to be invalid."""
            memory = OwnMemory(model, len(prompt.ids)) if workspace is None else workspace.memory
            graphs = None if workspace is None else workspace.graphs
            forward = Forward(memory, prompt, reused, attend, clock, graphs)
            watch = partial(_evict, eviction, forward) if eviction else None

            hidden, selected = _run_layers(forward, selector, choices, watch)
            logits = decoder.logits(model, hidden[:, -1:])[:, 0]
            cache = build_cache(forward.cache())
            if workspace is not None:
                workspace.memory.check_unchanged()
            if logits.device.type == "cuda":
                torch.cuda.synchronize(logits.device)
            if not choices.valid():
                return None
            timings = clock.seconds() | {"total": perf_counter() - start}
            return Prefill(
                logits,
                cache,
                len(prompt.ids),
                selected.cpu(),
                timings,
                workspace if eviction is None else None,
            )

        prefill = run(Choices(trusting=True)) or run(Choices(trusting=False))
        assert prefill is not None  # choices that are not trusted are valid, or an error
        return prefill


def _run_layers(forward: Forward, selector: Selector, choices: Choices, watch: Watch | None) -> tuple[Tensor, Tensor]:
    """The output of the last layer, ``(1, selected, hidden)``, and the positions that reached it, ``(selected,)``."""
    prompt, layers = forward.prompt, forward.layers
    if not selector.reuses:
        active = forward.positions(range(len(prompt.ids)))
        return forward.through(layers, forward.embed(active), active, watch), active

    # Stored keys and values are on their way while the layers below are computed.
    first_fused = selector.layers[0] + selector.observes  # below it, all tokens behind the prefix are computed
    forward.place_stored(layers[first_fused:])
    forward.place_stored(layers[:first_fused], prefix_only=True)

    active = forward.positions(range(len(prompt.prefix), len(prompt.ids)))
    hidden = forward.embed(active)
    selection = Selection(selector, choices, forward)
    next_layer = 0
    for selection_layer in selector.layers:
        hidden = forward.through(layers[next_layer:selection_layer], hidden, active, watch)
        hidden, active, next_layer = selection.at_layer(selection_layer, hidden, active, watch)
    return forward.through(layers[next_layer:], hidden, active, watch), active


def _check(
    model: PreTrainedModel,
    prompt: Prompt,
    segments: Sequence[Segment],
    selector: Selector,
    eviction: Eviction | None,
    workspace: Workspace | None,
) -> None:
    """Refuse what cannot be right, before anything is computed."""
    if workspace is not None:  # which checked its model when it was made
        workspace.memory.check_model(model)
    elif selector.reuses:  # the fingerprint, which stored segments are found by, includes the rest of the check
        check_architecture(model)
    else:
        check_model(model)
    check_prompt(model, prompt, segments)
    if workspace is not None:
        workspace.memory.check_prompt(prompt)
    layers = model.config.num_hidden_layers
    if selector.layers[-1] >= layers:
        raise ValueError(f"selection layer {selector.layers[-1]}: this model's layers are 0 to {layers - 1}")
    if eviction is not None:
        eviction.document_tokens(prompt)  # refuses a capacity that is too small


def _open(
    model: PreTrainedModel,
    prompt: Prompt,
    segments: Sequence[Segment],
    store: Segments | None,
    selector: Selector,
    workspace: Workspace | None,
) -> ReusedKV:
    """Open the prompt's stored segments. If the selector reuses the question too, it is computed now, on its own."""
    if not selector.reuses:
        return ReusedKV()
    if store is None:
        raise ValueError(f"{type(selector).__name__} reuses stored chunks: give it a KVStore")
    layout = Layout.of(model, store.format) if workspace is None else workspace.memory.layout(store.format)
    opened = open_segments(store, layout, segments)
    question = []
    if not selector.recomputes_question:
        context = segments[-1].context if segments else ()
        question.append(SegmentInMemory(*compute_segment(model, Segment(prompt.question, context))))
    first_chunk = len(opened) - len(prompt.chunks)
    return ReusedKV(opened[:first_chunk], opened[first_chunk:], question)


def _evict(
    eviction: Eviction, forward: Forward, index: int, queries: Tensor, fused: KV, positions: Tensor, scaling: float
) -> None:
    """Evict from a layer's keys and values as soon as the layer's attention is computed."""
    question = int((positions >= forward.prompt.question_span.start).sum())
    remaining = evict(eviction, forward.prompt, fused, queries[:, :, -question:], positions[-question:], scaling)
    forward.evict(index, remaining)
