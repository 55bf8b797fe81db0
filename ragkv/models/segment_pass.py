"""One forward pass over a segment: its keys (before rotation), values and surprisal."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ragkv.models import decoder
from ragkv.models.attention import get_backend
from ragkv.models.rotary import Rotary
from ragkv.prompt import Segment


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
    rotary, positions, attend = Rotary.of(model, tokens), torch.arange(tokens), get_backend("auto")
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
