"""One forward pass over segments: their keys (before rotation), values and surprisal."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ragkv.models import decoder
from ragkv.models.attention import auto
from ragkv.models.decoder import KV
from ragkv.models.pass_shape import PassShape
from ragkv.models.rotary import Rotary
from ragkv.prompt import Segment

PADDING = 0  # a token id; what follows a segment's tokens, or fills a row without a segment, is never read


def compute_segment(model: PreTrainedModel, segment: Segment) -> tuple[Tensor, Tensor]:
    """Compute a segment behind its context, in one forward pass.

    Returns
    -------
    layers
        Keys before rotation and values, ``(layers, 2, kv_heads, tokens, head_dim)``, without the context's. They are in
        host memory, which is pinned if a GPU computed them.
    surprisal
        -log p of each token given the ones before it, ``(tokens,)`` in float32; 0 for the first one.
    """
    return compute_segments(model, [segment], PassShape.alone(segment))[0]


@torch.inference_mode()
def compute_segments(
    model: PreTrainedModel, segments: Sequence[Segment], shape: PassShape
) -> list[tuple[Tensor, Tensor]]:
    """Compute segments that share a pass.

    Attention is causal, so the padding behind a segment does not affect it.

    Parameters
    ----------
    segments
        One to `shape.rows` segments that fit the shape: of up to `shape.tokens` tokens each, behind the shape's learned
        context and contexts of `shape.context` tokens.

    Returns
    -------
    list
        ``layers`` and ``surprisal`` of each segment, as `compute_segment` returns them. The layers of all segments are
        views of one tensor.
    """
    ids = _ids(segments, shape).to(model.model.embed_tokens.weight.device)
    ahead = 0 if shape.learned is None else shape.learned.tokens
    tokens = ids.shape[1]
    devices = decoder.devices(model)
    gpus = {device for device in devices if device.type == "cuda"}
    stored = _host_memory(model, shape, pinned=bool(gpus))
    rotary = Rotary.of(model, ahead + tokens)
    positions = torch.arange(ahead, ahead + tokens)

    hidden = decoder.embed(model, ids)
    for index, (layer, device) in enumerate(zip(model.model.layers, devices, strict=True)):
        positions = positions.to(device)
        learned = None if shape.learned is None else shape.learned.layers[index].to(device, model.dtype)
        place = partial(_place, stored[index], learned, rotary[index], positions)
        hidden, _ = decoder.run_layer(layer, hidden.to(device), positions, rotary[index], place, auto)

    surprisal = _surprisal(model, hidden[:, shape.context :], ids[:, shape.context :], shape.logit_rows)
    for device in gpus:  # the copies to pinned memory may still be running
        torch.cuda.synchronize(device)
    lengths = [len(segment.ids) for segment in segments]
    return [(stored[:, :, row, :, :length], surprisal[row, :length]) for row, length in enumerate(lengths)]


def _ids(segments: Sequence[Segment], shape: PassShape) -> Tensor:
    """The segments' ids behind their contexts, ``(rows, tokens)``, with padding."""
    ids = torch.full((shape.rows, shape.context + shape.tokens), PADDING)
    for row, segment in zip(ids, segments, strict=False):  # the last rows may be without a segment
        own = torch.tensor(segment.context + segment.ids)
        row[: len(own)] = own
    return ids


def _place(memory: Tensor, learned: Tensor | None, rotary: Rotary, positions: Tensor, fresh: KV) -> KV:
    """Keep a layer's keys, not yet rotated, and values, both without the context's; attend to all of them, rotated.

    A learned context, ``(2, kv_heads, tokens, head_dim)``, comes before them.
    """
    keys, values = fresh
    context = len(positions) - memory.shape[3]
    memory.copy_(torch.stack((keys, values))[..., context:, :], non_blocking=True)
    rotated = rotary(keys, positions)
    if learned is None:
        return rotated, values
    ahead_keys, ahead_values = learned[:, None].expand(-1, len(keys), -1, -1, -1)
    return torch.cat((ahead_keys, rotated), dim=2), torch.cat((ahead_values, values), dim=2)


def _surprisal(model: PreTrainedModel, hidden: Tensor, ids: Tensor, rows: int) -> Tensor:
    """-log p of each token given the ones before it, ``(rows, tokens)`` in float32; 0 for the first one of a row.

    Parameters
    ----------
    hidden
        The output of the last layer, ``(rows, tokens, hidden)``.
    rows
        The number of rows whose logits are in memory at a time.
    """
    following = ids[:, 1:]
    parts = []
    for states, targets in zip(hidden[:, :-1].split(rows), following.split(rows), strict=True):
        logits = decoder.logits(model, states).float()
        targets = targets.to(logits.device)
        parts.append(cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none"))
    surprisal = torch.zeros(ids.shape)
    surprisal[:, 1:] = torch.cat(parts).view(following.shape).cpu()
    return surprisal


def _host_memory(model: PreTrainedModel, shape: PassShape, *, pinned: bool) -> Tensor:
    """Host memory for keys and values; copies from a GPU to pinned memory run while it computes."""
    config, head_dim = model.config, model.model.layers[0].self_attn.head_dim
    size = (config.num_hidden_layers, 2, shape.rows, config.num_key_value_heads, shape.tokens, head_dim)
    return torch.empty(size, dtype=model.dtype, pin_memory=pinned)
