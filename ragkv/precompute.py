"""Offline: each segment's keys (before rotation), values and surprisal, from one forward pass of its own."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel

from ragkv import decoder
from ragkv.attention import get_backend
from ragkv.models import check_model, check_prompt
from ragkv.prompt import Prompt, Segment
from ragkv.shards import Shard
from ragkv.store import KVStore, Layout

WHOLE = Shard()


@dataclass(frozen=True)
class Precomputed:
    """What `precompute` did.

    Attributes
    ----------
    segments
        Distinct segments that the prompts need.
    shared
        Further occurrences of these in the prompts, which cost nothing.
    written, bytes, seconds
        Segments computed now, their size and the time it took; the others were in the store already.
    """

    segments: int
    shared: int
    written: int
    bytes: int
    seconds: float

    def __add__(self, other: "Precomputed") -> "Precomputed":
        """Two runs, or two shards of a run, as one."""
        return Precomputed(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


def precompute(
    model: PreTrainedModel,
    prompts: Iterable[Prompt],
    store: KVStore,
    *,
    shard: Shard = WHOLE,
    progress: bool = False,
) -> Precomputed:
    """Store what the prompts' chunks need. What is stored and whole is not computed again; damaged files are mended.

    Parameters
    ----------
    shard
        Do this part only. A segment belongs to one part by its key: however many prompts need it, it is computed once.

    Raises
    ------
    ValueError
        A model that is not supported, or a prompt that it cannot read.
    StoreError
        The store cannot be written to.
    """
    check_model(model)
    start, layout = perf_counter(), Layout.of(model, store.format)
    uses: Counter[Segment] = Counter()
    for prompt in prompts:
        check_prompt(model, prompt)
        uses.update(prompt.segments(model.config.bos_token_id))
    distinct = [segment for segment in uses if shard.whole or shard.owns(layout.key(segment))]
    shared = sum(uses[segment] - 1 for segment in distinct)
    written = size = 0
    for segment in tqdm(distinct, "precompute", unit="segment") if progress else distinct:
        if not store.check(layout, segment):
            size += store.write(layout, segment, *compute_segment(model, segment))
            written += 1
    return Precomputed(len(distinct), shared, written, size, perf_counter() - start)


@torch.inference_mode()
def compute_segment(model: PreTrainedModel, segment: Segment) -> tuple[Tensor, Tensor]:
    """A segment behind its context, from one forward pass.

    Returns
    -------
    layers
        Keys before rotation and values, ``(layers, 2, kv_heads, tokens, head_dim)``, the context's dropped: on the
        host, in pinned memory where a GPU computed them.
    surprisal
        -log p of each token given the ones before it, ``(tokens,)`` in float32; 0 for the first one.
    """
    ids = torch.tensor([segment.context + segment.ids], device=model.model.embed_tokens.weight.device)
    skip, tokens = len(segment.context), ids.shape[1]
    rotary, positions, attend = decoder.Rotary.of(model, tokens), torch.arange(tokens), get_backend("auto")
    gpus = {device for device in decoder.devices(model) if device.type == "cuda"}
    hidden, kept = model.model.embed_tokens(ids), _room(model, len(segment.ids), pinned=bool(gpus))
    for layer, room in zip(model.model.layers, kept, strict=True):
        attention = layer.self_attn
        hidden = hidden.to(attention.q_proj.weight.device)
        normed = decoder.norm(layer.input_layernorm, hidden)
        keys, values = decoder.keys_values(attention, normed)
        room.copy_(torch.cat((keys, values))[:, :, skip:], non_blocking=True)
        queries, rotated = (rotary(states, positions) for states in (decoder.queries(attention, normed), keys))
        attended = attend(queries, rotated, values, positions.to(hidden.device), attention.scaling)
        hidden = decoder.finish(layer, hidden, attended)
    logits = decoder.logits(model, hidden[:, skip:-1]).float()
    surprisal = torch.zeros(len(segment.ids))
    surprisal[1:] = cross_entropy(logits[0], ids[0, skip + 1 :].to(logits.device), reduction="none").cpu()
    for device in gpus:  # until when copies may be on their way
        torch.cuda.synchronize(device)
    return kept, surprisal


def _room(model: PreTrainedModel, tokens: int, *, pinned: bool) -> Tensor:
    """For a segment's keys and values, on the host; copies from a GPU to pinned memory run while it computes."""
    config, head_dim = model.config, model.model.layers[0].self_attn.head_dim
    shape = (config.num_hidden_layers, 2, config.num_key_value_heads, tokens, head_dim)
    return torch.empty(shape, dtype=model.dtype, pin_memory=pinned)
