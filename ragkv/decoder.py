"""One decoder layer in steps, so that tokens may leave between them.

Llama, Mistral, Qwen2 and Qwen3 share their layout in transformers: the steps below call the model's own modules
(projections, norms, MLP), and no forward of transformers is replaced; on a GPU what lies between the products runs in
kernels that round alike. Queries and keys come out *before* rotary
embedding: a stored key can then be rotated to wherever its chunk stands.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from ragkv.kernels import kernels_run


def devices(model: PreTrainedModel) -> list[torch.device]:
    """Where each layer is computed."""
    return [layer.self_attn.q_proj.weight.device for layer in model.model.layers]


def queries(attention: nn.Module, hidden: Tensor) -> Tensor:
    """Queries before rotation: ``(batch, tokens, hidden)`` to ``(batch, heads, tokens, head_dim)``."""
    return _heads(attention.q_proj(hidden), attention.head_dim, getattr(attention, "q_norm", None))


def keys_values(attention: nn.Module, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Keys before rotation and values: ``(batch, tokens, hidden)`` to ``(batch, kv_heads, tokens, head_dim)`` each."""
    keys = _heads(attention.k_proj(hidden), attention.head_dim, getattr(attention, "k_norm", None))
    return keys, _heads(attention.v_proj(hidden), attention.head_dim)


def _heads(projected: Tensor, head_dim: int, norm: nn.Module | None = None) -> Tensor:
    states = projected.unflatten(-1, (-1, head_dim))  # (batch, tokens, heads, head_dim)
    if norm is not None:  # Qwen3
        states = norm(states)
    return states.transpose(1, 2)


def finish(layer: nn.Module, hidden: Tensor, attended: Tensor) -> Tensor:
    """The rest of a layer after attention: output projection, MLP and the two residual connections.

    Parameters
    ----------
    hidden
        The layer's input, ``(batch, tokens, hidden)``.
    attended
        What attention gave, ``(batch, heads, tokens, head_dim)``.
    """
    hidden = hidden + layer.self_attn.o_proj(attended.transpose(1, 2).flatten(-2))
    return hidden + _mlp(layer.mlp, norm(layer.post_attention_layernorm, hidden))


def norm(module: nn.Module, hidden: Tensor) -> Tensor:
    """A layer's norm, ``(batch, tokens, hidden)``."""
    if kernels_run(hidden.device):
        from ragkv.kernels.elementwise import rms_norm

        return rms_norm(hidden, module.weight, module.variance_epsilon)
    return module(hidden)


def _mlp(mlp: nn.Module, hidden: Tensor) -> Tensor:
    if kernels_run(hidden.device) and isinstance(mlp.act_fn, nn.SiLU | SiLUActivation):
        from ragkv.kernels.elementwise import gated

        return mlp.down_proj(gated(mlp.gate_proj(hidden), mlp.up_proj(hidden)))
    return mlp(hidden)


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The language model's head over the last layer's output: ``(batch, tokens, vocab)``."""
    last = model.model.norm
    return model.lm_head(norm(last, hidden.to(last.weight.device)).to(model.lm_head.weight.device))


class Rotary:
    """The model's own rotary embedding (default, llama3, YaRN, ...) for positions ``0 .. tokens - 1``, in float32.

    ``cos`` and ``sin`` carry the family's attention scaling, for fresh and for stored keys alike.
    """

    def __init__(self, cos: Tensor, sin: Tensor):
        self._on = {cos.device: (cos, sin)}

    @classmethod
    def of(cls, model: PreTrainedModel, tokens: int) -> "Rotary":
        """A model's, for so many positions."""
        embedding = model.model.rotary_emb
        positions = torch.arange(tokens, device=embedding.inv_freq.device)[None]
        return cls(*embedding(torch.empty(0, device=positions.device), positions))  # (1, tokens, head_dim) each

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all positions, ``(1, tokens, head_dim)`` each, on that device."""
        if device not in self._on:
            cos, sin = next(iter(self._on.values()))
            self._on[device] = cos.to(device), sin.to(device)
        return self._on[device]

    def __call__(self, states: Tensor, positions: Tensor | slice) -> Tensor:
        """Rotate ``(batch, heads, tokens, head_dim)`` to `positions`, one per token; the dtype stays."""
        if kernels_run(states.device) and isinstance(positions, Tensor):
            from ragkv.kernels.elementwise import rotate

            return rotate(states, *self.on(states.device), positions.to(states.device))
        cos, sin = (angles[:, None, positions] for angles in self.on(states.device))  # (1, 1, tokens, head_dim)
        exact = states.float()
        left, right = exact.chunk(2, dim=-1)
        return (exact * cos + torch.cat((-right, left), dim=-1) * sin).to(states.dtype)
