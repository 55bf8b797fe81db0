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

KV = tuple[Tensor, Tensor]


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
