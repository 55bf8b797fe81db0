"""fused_prefill: reuse what was computed offline, recompute what the selector names (arXiv 2511.17560).

Per layer, fresh keys and values are written over the stored ones, and every query attends to all keys at or before its
own position. Below the selection layer all tokens behind the prefix are computed; from there on only the selected ones
and the question.

Several prompts can be prefilled together, see `fused_prefills`. A single one is a batch of one.
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
from ragkv.fusion.preparation import check, open_stored
from ragkv.fusion.rows import Rows
from ragkv.fusion.selection import Selection
from ragkv.fusion.workspace import Workspace
from ragkv.loading.segments import Segments
from ragkv.models import decoder
from ragkv.models.attention import get_backend
from ragkv.models.checks import check_type
from ragkv.models.decoder import KV
from ragkv.models.out_of_memory import explained
from ragkv.prompt import Prompt
from ragkv.selectors import Selector

_SMALLER = "give fewer or shorter chunks, or spread the model over several GPUs (load_model's device_map)"
_FEWER = "prefill fewer prompts at once"


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
        device), ``select``, and ``total``, which includes the layers' own computation. Those of prompts that were
        prefilled together are of all of them.
    workspace
        The workspace that the cache lies in, if this prompt has it for itself: `ragkv.decode` goes on there if the
        answer fits.
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
    [prefill] = fused_prefills(
        model, [prompt], store, selector, eviction=eviction, backend=backend, workspace=workspace
    )
    return prefill


@torch.inference_mode()
def fused_prefills(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    store: Segments | None,
    selector: Selector,
    *,
    eviction: Eviction | None = None,
    backend: str = "auto",
    workspace: Workspace | None = None,
) -> list[Prefill]:
    """Prefill several prompts together: as `fused_prefill` one by one, but each layer's weights are read once for all.

    This is faster on a GPU where few tokens are recomputed, as reading the weights takes most of the time there. The
    prompts may have different lengths and numbers of chunks. Results differ from those one by one only by rounding.

    The keys and values of all prompts lie end to end in one piece of memory per layer, and each prefill's cache is a
    view of its part: as many bytes as all caches need, freed when the last of them is dropped. Decoding copies a
    prompt's part before it adds to it.

    Parameters
    ----------
    prompts
        Any number of them, whose results are returned in the same order.
    workspace
        As in `fused_prefill`, with room for the tokens of all prompts. The next prefill in it overwrites all caches.

    Raises
    ------
    ValueError, StoreError, torch.OutOfMemoryError
        As in `fused_prefill`. If only one of the prompts cannot be handled, the message says which one, and nothing was
        computed.
    """
    start = perf_counter()
    check_type(model)
    if not prompts:
        return []
    tokens = sum(len(prompt.ids) for prompt in prompts)
    what, advice = f"a prefill of {tokens} tokens", _SMALLER
    if len(prompts) > 1:
        what, advice = f"a prefill of {len(prompts)} prompts with {tokens} tokens together", _FEWER
    with explained(what, model.device, advice):
        segments = [prompt.segments(model.config.bos_token_id) for prompt in prompts]
        check(model, prompts, segments, selector, eviction, workspace)
        clock = Clock(set(decoder.devices(model)))
        with clock("open"):
            reused = open_stored(model, prompts, segments, store, selector, workspace)
        attend = get_backend(backend)

        def run(choices: Choices) -> list[Prefill] | None:
            """The prefills; None if a choice that was trusted turns out to be invalid."""
            lengths = [len(prompt.ids) for prompt in prompts]
            memory = OwnMemory(model, lengths) if workspace is None else workspace.memory
            graphs = None if workspace is None else workspace.graphs
            forward = Forward(memory, prompts, reused, attend, clock, graphs)
            watch = partial(_evict, eviction, forward) if eviction else None

            hidden, rows = _run_layers(forward, selector, choices, watch)
            logits = decoder.logits(model, rows.last(hidden))  # (1, prompts, vocab)
            caches = [build_cache(forward.cache(number)) for number in range(len(prompts))]
            if workspace is not None:
                workspace.memory.check_unchanged()
            if not choices.valid():
                return None
            if logits.device.type == "cuda":
                torch.cuda.synchronize(logits.device)
            timings = clock.seconds() | {"total": perf_counter() - start}
            selected = rows.to(torch.device("cpu")).by_prompt
            return [
                Prefill(
                    logits[:, number],
                    caches[number],
                    len(prompt.ids),
                    selected[number],
                    dict(timings),
                    workspace if len(prompts) == 1 else None,
                )
                for number, prompt in enumerate(prompts)
            ]

        prefills = run(Choices(trusting=True)) or run(Choices(trusting=False))
        assert prefills is not None  # choices that are not trusted are valid, or an error
        return prefills


def _run_layers(forward: Forward, selector: Selector, choices: Choices, watch: Watch | None) -> tuple[Tensor, Rows]:
    """The output of the last layer, ``(1, rows, hidden)``, and the rows that reached it."""
    prompts, layers = forward.prompts, forward.layers
    if not selector.reuses:
        rows = forward.rows([range(len(prompt.ids)) for prompt in prompts])
        return forward.through(layers, forward.embed(rows), rows, watch), rows

    # Stored keys and values are on their way while the layers below `first_fused` are computed for all tokens behind
    # the prefix. Of an observed layer, the stored ones are needed only if they are compared with the fresh ones.
    first_fused = selector.layers[0] + (selector.observes and not selector.compares)
    forward.place_stored(layers[first_fused:])
    forward.place_stored(layers[:first_fused], prefix_only=True)

    rows = forward.rows([range(len(prompt.prefix), len(prompt.ids)) for prompt in prompts])
    hidden = forward.embed(rows)
    selection = Selection(selector, choices, forward)
    next_layer = 0
    for selection_layer in selector.layers:
        hidden = forward.through(layers[next_layer:selection_layer], hidden, rows, watch)
        hidden, rows, next_layer = selection.at_layer(selection_layer, hidden, rows, watch)
    return forward.through(layers[next_layer:], hidden, rows, watch), rows


def _evict(
    eviction: Eviction, forward: Forward, index: int, queries: Tensor, fused: KV, rows: Rows, scaling: float
) -> None:
    """Evict from a layer's keys and values as soon as the layer's attention is computed."""
    remaining = []
    for number, prompt in enumerate(forward.prompts):
        positions, stop = rows.by_prompt[number], rows.spans[number].stop
        question = int((positions >= prompt.question_span.start).sum())
        asked = queries[:, :, stop - question : stop]
        states = forward.of_prompt(number, fused)
        remaining.append(evict(eviction, prompt, states, asked, positions[-question:], scaling))
    forward.evict(index, remaining)
