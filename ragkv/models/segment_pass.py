"""One forward pass over a segment: its keys (before rotation), values and surprisal."""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ragkv.models import decoder
from ragkv.models.attention import auto
from ragkv.models.decoder import KV
from ragkv.models.rotary import Rotary
from ragkv.prompt import Segment


@torch.inference_mode()
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
    ids = torch.tensor([segment.context + segment.ids], device=model.model.embed_tokens.weight.device)
    context, tokens = len(segment.context), ids.shape[1]
    ahead = 0 if segment.learned is None else segment.learned.tokens
    devices = decoder.devices(model)
    gpus = {device for device in devices if device.type == "cuda"}
    stored = _host_memory(model, len(segment.ids), pinned=bool(gpus))
    rotary = Rotary.of(model, ahead + tokens)
    positions = torch.arange(ahead, ahead + tokens)

    hidden = model.model.embed_tokens(ids)
    for index, (layer, device) in enumerate(zip(model.model.layers, devices, strict=True)):
        positions = positions.to(device)
        learned = None if segment.learned is None else segment.learned.layers[index].to(device, model.dtype)
        place = partial(_place, stored[index], learned, rotary, positions)
        hidden, _ = decoder.run_layer(layer, hidden.to(device), positions, rotary, place, auto)

    logits = decoder.logits(model, hidden[:, context:-1]).float()
    surprisal = torch.zeros(len(segment.ids))
    surprisal[1:] = cross_entropy(logits[0], ids[0, context + 1 :].to(logits.device), reduction="none").cpu()
    for device in gpus:  # the copies to pinned memory may still be running
        torch.cuda.synchronize(device)
    return stored, surprisal


def _place(memory: Tensor, learned: Tensor | None, rotary: Rotary, positions: Tensor, fresh: KV) -> KV:
    """Keep a layer's keys, not yet rotated, and values, both without the context's; attend to all of them, rotated.

    A learned context, ``(2, kv_heads, tokens, head_dim)``, comes before them.
    """
    keys, values = fresh
    context = len(positions) - memory.shape[2]
    memory.copy_(torch.cat((keys, values))[:, :, context:], non_blocking=True)
    rotated = rotary(keys, positions)
    if learned is None:
        return rotated, values
    return torch.cat((learned[:1], rotated), dim=2), torch.cat((learned[1:], values), dim=2)


def _host_memory(model: PreTrainedModel, tokens: int, *, pinned: bool) -> Tensor:
    """Host memory for a segment's keys and values; copies from a GPU to pinned memory run while it computes."""
    config, head_dim = model.config, model.model.layers[0].self_attn.head_dim
    shape = (config.num_hidden_layers, 2, config.num_key_value_heads, tokens, head_dim)
    return torch.empty(shape, dtype=model.dtype, pin_memory=pinned)
