"""The model's rotary embedding, which rotates queries and keys to their positions."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ragkv.kernels import kernels_run
from ragkv.models.families import family_of
from ragkv.models.limits import is_longrope, position_count


class Rotary:
    """A layer's rotary embedding (default, llama3, YaRN, ...) for positions ``0 .. tokens - 1``, in float32.

    Some families scale attention through ``cos`` and ``sin``; fresh and stored keys are scaled alike.

    Parameters
    ----------
    cos, sin
        ``(1, tokens, width)`` each. Channels of a head beyond this width are not rotated.
    """

    def __init__(self, cos: Tensor, sin: Tensor):
        self._on = {cos.device: (cos, sin)}

    @classmethod
    def of(cls, model: PreTrainedModel, tokens: int) -> list["Rotary"]:
        """The rotary embedding of each layer for the first `tokens` positions; equal ones are one object."""
        embedding, layers, family = model.model.rotary_emb, model.model.layers, family_of(model)
        positions = torch.arange(tokens, device=next(embedding.buffers()).device)[None]
        if is_longrope(model.config):  # no position may switch to the other frequencies; only padding stands beyond
            positions = positions.clamp(max=position_count(model.config) - 1)
        dtype = torch.empty(0, device=positions.device)  # which float32 angles are returned in
        if family.rotary_kinds is not None:
            kinds = getattr(model.config, family.rotary_kinds)
            rotaries = {kind: cls(*embedding(dtype, positions, kind)) for kind in set(kinds)}
            return [rotaries[kind] for kind in kinds[: len(layers)]]
        cos, sin = embedding(dtype, positions)
        rotating = cls(cos, sin)
        if family.rotary_switch is None:
            return [rotating] * len(layers)
        still = cls(torch.ones_like(cos), torch.zeros_like(sin))  # by an angle of 0
        return [rotating if getattr(layer.self_attn, family.rotary_switch) else still for layer in layers]

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``cos`` and ``sin`` on a device; they are copied there at most once."""
        if device not in self._on:
            cos, sin = next(iter(self._on.values()))
            self._on[device] = cos.to(device), sin.to(device)
        return self._on[device]

    def __call__(self, states: Tensor, positions: Tensor | slice) -> Tensor:
        """Rotate ``(batch, heads, tokens, head_dim)`` to `positions`, one per token; the dtype stays."""
        if kernels_run(states.device) and isinstance(positions, Tensor) and not states.requires_grad:
            from ragkv.kernels.elementwise import rotate

            return rotate(states, *self.on(states.device), positions.to(states.device))
        cos, sin = (angles[:, None, positions] for angles in self.on(states.device))  # (1, 1, tokens, width)
        width = cos.shape[-1]
        exact = states[..., :width].float()
        left, right = exact.chunk(2, dim=-1)
        rotated = (exact * cos + torch.cat((-right, left), dim=-1) * sin).to(states.dtype)
        return rotated if width == states.shape[-1] else torch.cat((rotated, states[..., width:]), dim=-1)
