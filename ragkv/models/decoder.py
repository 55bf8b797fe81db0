"""One decoder layer, split into steps so that tokens can drop out between them.

Llama, Mistral, Qwen2 and Qwen3 share one layout in transformers. The steps below call the model's own projections,
norms and MLP; no forward of transformers is replaced. On a GPU, whatever lies between the matrix products runs in
Triton kernels that round as transformers does.

Queries and keys come out *before* rotary embedding, so that a stored key can be rotated to wherever its chunk stands.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from ragkv.kernels import kernels_run
from ragkv.models.attention import Backend
from ragkv.models.rotary import Rotary

KV = tuple[Tensor, Tensor]
"""Keys and values, ``(batch, kv_heads, tokens, head_dim)`` each."""

Place = Callable[[KV], KV]
"""Takes the fresh keys (before rotation) and values; returns the keys (rotated) and values to attend to."""

Choose = Callable[[Tensor, KV], Tensor]
"""Takes the normed input and the fresh keys and values; returns the rows that go on."""


def run_layer(
    layer: nn.Module,
    hidden: Tensor,
    positions: Tensor,
    rotary: Rotary,
    place: Place,
    attend: Backend,
    *,
    choose: Choose | None = None,
    side_stream: torch.cuda.Stream | None = None,
) -> tuple[Tensor, Tensor]:
    """One decoder layer over some tokens.

    Parameters
    ----------
    hidden
        The layer's input, ``(batch, tokens, hidden)``, on the layer's device.
    positions
        ``(tokens,)``: the positions that the queries are rotated to.
    choose
        Drops tokens once their keys and values are placed; by default all of them go on.
    side_stream
        Computes and places keys and values beside the queries, as small matrix products leave a GPU half empty. Not
        together with `choose`.

    Returns
    -------
    hidden
        The layer's output for the tokens that went on.
    positions
        Their positions.
    """
    attention = layer.self_attn
    normed = norm(layer.input_layernorm, hidden)

    if side_stream is not None:
        side_stream.wait_stream(torch.cuda.current_stream(hidden.device))
    with torch.cuda.stream(side_stream):  # None: the current stream
        fresh = keys_values(attention, normed)
        keys, values = place(fresh)

    if choose is not None:
        kept = choose(normed, fresh)
        hidden, normed, positions = hidden[:, kept], normed[:, kept], positions[kept]
    rotated = rotary(queries(attention, normed), positions)

    if side_stream is not None:
        torch.cuda.current_stream(hidden.device).wait_stream(side_stream)
    attended = attend(rotated, keys, values, positions, attention.scaling)
    return finish(layer, hidden, attended), positions


def devices(model: PreTrainedModel) -> list[torch.device]:
    """The device of each layer."""
    return [layer.self_attn.q_proj.weight.device for layer in model.model.layers]


def queries(attention: nn.Module, hidden: Tensor) -> Tensor:
    """Queries before rotation: ``(batch, tokens, hidden)`` to ``(batch, heads, tokens, head_dim)``."""
    return _heads(attention.q_proj(hidden), attention.head_dim, getattr(attention, "q_norm", None))


def keys_values(attention: nn.Module, hidden: Tensor) -> KV:
    """Keys before rotation and values: ``(batch, tokens, hidden)`` to ``(batch, kv_heads, tokens, head_dim)`` each."""
    keys = _heads(attention.k_proj(hidden), attention.head_dim, getattr(attention, "k_norm", None))
    values = _heads(attention.v_proj(hidden), attention.head_dim)
    return keys, values


def _heads(projected: Tensor, head_dim: int, head_norm: nn.Module | None = None) -> Tensor:
    states = projected.unflatten(-1, (-1, head_dim))  # (batch, tokens, heads, head_dim)
    if head_norm is not None:  # Qwen3
        states = head_norm(states)
    return states.transpose(1, 2)


def finish(layer: nn.Module, hidden: Tensor, attended: Tensor) -> Tensor:
    """The rest of a layer after attention: output projection, MLP and the two residual connections.

    Parameters
    ----------
    hidden
        The layer's input, ``(batch, tokens, hidden)``.
    attended
        The output of attention, ``(batch, heads, tokens, head_dim)``.
    """
    hidden = hidden + layer.self_attn.o_proj(attended.transpose(1, 2).flatten(-2))
    return hidden + _mlp(layer.mlp, norm(layer.post_attention_layernorm, hidden))


def norm(module: nn.Module, hidden: Tensor) -> Tensor:
    """RMS norm of ``(batch, tokens, hidden)``."""
    if _kernels_run(hidden):
        from ragkv.kernels.elementwise import rms_norm

        return rms_norm(hidden, module.weight, module.variance_epsilon)
    return module(hidden)


def _mlp(mlp: nn.Module, hidden: Tensor) -> Tensor:
    if _kernels_run(hidden) and isinstance(mlp.act_fn, nn.SiLU | SiLUActivation):
        from ragkv.kernels.elementwise import gated

        return mlp.down_proj(gated(mlp.gate_proj(hidden), mlp.up_proj(hidden)))
    return mlp(hidden)


def _kernels_run(states: Tensor) -> bool:
    """Whether Triton's kernels run on these states. They have no backward pass, which training a context needs."""
    return kernels_run(states.device) and not states.requires_grad


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The language model's head over the last layer's output: ``(batch, tokens, vocab)``."""
    last_norm = model.model.norm
    normed = norm(last_norm, hidden.to(last_norm.weight.device))
    return model.lm_head(normed.to(model.lm_head.weight.device))
