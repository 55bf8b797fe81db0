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

from ragkv.eviction import Eviction, evict
from ragkv.fusion.cache import build_cache
from ragkv.fusion.choices import Choices
from ragkv.fusion.clock import Clock
from ragkv.fusion.forward import Forward
from ragkv.fusion.workspace import Workspace
from ragkv.fusion.workspace_forward import WorkspaceForward
from ragkv.loading.reused import ReusedKV, open_segments
from ragkv.loading.segments import SegmentInMemory, Segments
from ragkv.models import decoder
from ragkv.models.attention import get_backend
from ragkv.models.checks import check_model, check_prompt
from ragkv.models.decoder import KV
from ragkv.models.out_of_memory import explained
from ragkv.models.segment_pass import compute_segment
from ragkv.prompt import Prompt, Segment
from ragkv.selectors import Observation, Selector
from ragkv.store import Layout

_SMALLER = "give fewer or shorter chunks, or spread the model over several GPUs (load_model's device_map)"


@dataclass(frozen=True)
class Prefill:
    """What a fused prefill gives.

    Attributes
    ----------
    logits
        ``(1, vocab)``, after the last token of the question.
    cache
        An ordinary transformers cache of all the prompt's tokens, or of those that an eviction kept.
    tokens
        The prompt's tokens: the position of the next one.
    selected
        ``(selected,)``: sorted positions that were recomputed in all layers, the question's included.
    timings
        Seconds by stage: ``open`` (finding and checking the stored segments), ``load`` (their keys and values to the
        device), ``select``, and ``total``, which includes the layers' own computation.
    workspace
        Where the cache lies, if it lies in one: `ragkv.decode` then goes on there, if there is room for the answer.
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
        Holds the prompt's segments (see `precompute`): a KVStore, or one read ahead (`ragkv.loading.prefetch.ReadAhead`).
        None is enough for selectors that reuse nothing.
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
    with explained(f"a prefill of {len(prompt.ids)} tokens", model.device, _SMALLER):
        start, given = perf_counter(), (model, prompt, store, selector, eviction, backend, workspace)
        prefill = _prefill(start, *given, trusting=True) or _prefill(start, *given, trusting=False)
        assert prefill is not None  # without trust it is an error
        return prefill


def _prefill(
    start: float,
    model: PreTrainedModel,
    prompt: Prompt,
    store: Segments | None,
    selector: Selector,
    eviction: Eviction | None,
    backend: str,
    workspace: Workspace | None,
    *,
    trusting: bool,
) -> Prefill | None:
    """A prefill; None where it was `trusting`, and a choice was not what it should be."""
    _check(model, prompt, selector, workspace)
    clock, choices = Clock(set(decoder.devices(model))), Choices(trusting)
    if eviction is not None:
        eviction.room(prompt)  # an error before anything is computed
    with clock("open"):
        reuse = _open(model, prompt, store, selector, workspace) if selector.reuses else ReusedKV([], [], [])
    attend = get_backend(backend)
    if workspace is None:
        forward = Forward(model, prompt, reuse, attend, clock)
    else:
        forward = WorkspaceForward(workspace, prompt, reuse, attend, clock)
    layers, watch = model.config.num_hidden_layers, partial(_evict, eviction, forward) if eviction else None
    selecting = selector.layers if selector.reuses else ()
    if selector.reuses:
        fusing = selector.layer + selector.observes
        forward.start(range(fusing, layers))
        forward.start(range(fusing), prefix_only=True)  # all other tokens are computed afresh
    first = len(prompt.prefix) if selector.reuses else 0
    active = torch.arange(first, len(prompt.ids), device=forward.ids.device)  # what is being computed
    hidden, index = forward.embed(active), 0
    while index < layers:
        if index in selecting and selector.observes:
            choose = partial(_observe, selector, choices, forward, index)
            hidden, active = forward.layer(index, hidden, active, choose=choose, watch=watch)
            index += 1
            continue
        if index in selecting:
            with clock("select"):
                kept = choices.rows(selector, Observation(prompt, reuse.surprisal, look=forward.look), active)
            kept = kept.to(active.device, non_blocking=active.is_cuda)
            hidden, active = hidden[:, kept.to(hidden.device)], active[kept]
        stop = min((layer for layer in selecting if layer > index), default=layers)
        hidden = forward.through(range(index, stop), hidden, active, watch)
        index = stop
    logits, cache = decoder.logits(model, hidden[:, -1:])[:, 0], build_cache(forward.layers)
    if logits.device.type == "cuda":
        torch.cuda.synchronize(logits.device)
    if not choices.hold():
        return None
    timings = clock.seconds() | {"total": perf_counter() - start}
    room = workspace if eviction is None else None
    return Prefill(logits, cache, len(prompt.ids), active.cpu(), timings, room)


def _check(model: PreTrainedModel, prompt: Prompt, selector: Selector, workspace: Workspace | None) -> None:
    if workspace is None:
        check_model(model)
    else:  # has checked its model when it was made
        workspace.check(model, prompt)
    check_prompt(model, prompt)
    layers = model.config.num_hidden_layers
    if selector.layers[-1] >= layers:
        raise ValueError(f"selection layer {selector.layers[-1]}: this model's layers are 0 to {layers - 1}")


def _open(
    model: PreTrainedModel, prompt: Prompt, store: Segments | None, selector: Selector, workspace: Workspace | None
) -> ReusedKV:
    """The prompt's stored segments; the question's own, computed now, where the selector reuses it."""
    if store is None:
        raise ValueError(f"{type(selector).__name__} reuses stored chunks: give it a KVStore")
    needed = prompt.segments(model.config.bos_token_id)
    layout = Layout.of(model, store.format) if workspace is None else workspace.layout(store.format)
    segments = open_segments(store, layout, needed)
    prefix, chunks = segments[: bool(prompt.prefix)], segments[bool(prompt.prefix) :]
    question = []
    if not selector.recomputes_question:
        context = needed[-1].context if needed else ()
        question.append(SegmentInMemory(*compute_segment(model, Segment(prompt.question, context))))
    return ReusedKV(prefix, chunks, question)


def _observe(
    selector: Selector,
    choices: Choices,
    forward: Forward,
    index: int,
    attention: nn.Module,
    normed: Tensor,
    fresh: KV,
    active: Tensor,
) -> Tensor:
    """The rows that the selector keeps of what it sees; the stored document is loaded only if it asks for it."""
    prompt, rotary, start = forward.prompt, forward.rotary, len(forward.prompt.prefix)

    def reused() -> KV:
        document = forward.reuse.document(index, normed.device)
        assert document is not None
        keys, values = document
        return rotary(keys, slice(start, start + keys.shape[2])), values

    with forward.clock("select"):
        question = decoder.queries(attention, normed[:, -len(prompt.question) :])
        seen = Observation(
            prompt,
            forward.reuse.surprisal,
            queries=rotary(question, active[-len(prompt.question) :]),
            keys=fresh[0],
            values=fresh[1],
            choice=selector.layers.index(index),
            left=active[: len(active) - len(prompt.question)] - start,
            reused=reused,
            scaling=attention.scaling,
        )
        return choices.rows(selector, seen, active)


def _evict(
    eviction: Eviction, forward: Forward, index: int, queries: Tensor, fused: KV, positions: Tensor, scaling: float
) -> None:
    """A layer's keys and values that stay, once the layer is computed."""
    asked = int((positions >= forward.prompt.question_span.start).sum())
    window, where = queries[:, :, -asked:], positions[-asked:]
    forward.layers[index] = evict(eviction, forward.prompt, fused, window, where, scaling)
