"""One decoder layer, split into steps so that tokens can drop out between them.

The steps below call the model's own projections, norms and MLP, which `ragkv.models.families` finds; no forward of
transformers is replaced. On a GPU, whatever lies between the matrix products runs in Triton kernels that round as
transformers does.

Queries and keys come out *before* rotary embedding, so that a stored key can be rotated to wherever its chunk stands.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from ragkv.kernels import kernels_run
from ragkv.models.attention import Backend
from ragkv.models.families import Norms, family_of
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
        Drops tokens once their keys and values are computed, before they are placed; by default all of them go on.
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
    normed = _norm(layer, family_of(attention).norms.before_attention, hidden)

    if side_stream is not None:
        side_stream.wait_stream(torch.cuda.current_stream(hidden.device))
    with torch.cuda.stream(side_stream):  # None: the current stream
        fresh = keys_values(attention, normed)
        kept = None if choose is None else choose(normed, fresh)
        keys, values = place(fresh)

    if kept is not None:
        hidden, normed, positions = hidden[:, kept], normed[:, kept], positions[kept]
    rotated = rotary(queries(attention, normed), positions)

    if side_stream is not None:
        torch.cuda.current_stream(hidden.device).wait_stream(side_stream)
    attended = attend(rotated, keys, values, positions, attention.scaling)
    return finish(layer, hidden, attended), positions


def device(layer: nn.Module) -> torch.device:
    """The device of a layer."""
    return layer.self_attn.o_proj.weight.device


def devices(model: PreTrainedModel) -> list[torch.device]:
    """The device of each layer."""
    return [device(layer) for layer in model.model.layers]


def embed(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The input of the first layer: ``(batch, tokens)`` to ``(batch, tokens, hidden)``."""
    hidden = model.model.embed_tokens(ids)
    scale = family_of(model).embedding_scale
    return hidden if scale is None else hidden * getattr(model.model, scale)


def queries(attention: nn.Module, hidden: Tensor) -> Tensor:
    """Queries before rotation: ``(batch, tokens, hidden)`` to ``(batch, heads, tokens, head_dim)``."""
    return _heads(attention, _projected(attention, "q", hidden), "q_norm")


def keys_values(attention: nn.Module, hidden: Tensor) -> KV:
    """Keys before rotation and values: ``(batch, tokens, hidden)`` to ``(batch, kv_heads, tokens, head_dim)`` each."""
    keys = _heads(attention, _projected(attention, "k", hidden), "k_norm")
    values = _heads(attention, _projected(attention, "v", hidden))
    return keys, values


def _projected(attention: nn.Module, name: Literal["q", "k", "v"], hidden: Tensor) -> Tensor:
    """The projection to queries, keys or values, ``(batch, tokens, heads * head_dim)``."""
    if not family_of(attention).fused:
        return getattr(attention, f"{name}_proj")(hidden)
    query_width = attention.config.num_attention_heads * attention.head_dim
    key_width = attention.config.num_key_value_heads * attention.head_dim
    start = {"q": 0, "k": query_width, "v": query_width + key_width}[name]
    return _part(attention.qkv_proj, hidden, slice(start, start + (query_width if name == "q" else key_width)))


def _part(projection: nn.Module, hidden: Tensor, rows: slice) -> Tensor:
    """Some of a projection's outputs. Of other classes than PyTorch's own, such as adapters, all are computed."""
    if type(projection) is nn.Linear and type(projection.weight) is nn.Parameter:
        bias = None if projection.bias is None else projection.bias[rows]
        return linear(hidden, projection.weight[rows], bias)
    return projection(hidden)[..., rows]


def _heads(attention: nn.Module, projected: Tensor, head_norm: str = "") -> Tensor:
    """``(batch, tokens, heads * head_dim)`` to ``(batch, heads, tokens, head_dim)``, normed if the family does that."""
    normed_over = family_of(attention).head_norms if head_norm else None
    if normed_over == "width":
        projected = getattr(attention, head_norm)(projected)
    states = projected.unflatten(-1, (-1, attention.head_dim))  # (batch, tokens, heads, head_dim)
    if normed_over == "head":
        states = getattr(attention, head_norm)(states)
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
    norms = family_of(layer.self_attn).norms
    output = layer.self_attn.o_proj(attended.transpose(1, 2).flatten(-2))
    hidden = _add(layer, hidden, _norm(layer, norms.behind_attention, output))
    output = _mlp(layer, _norm(layer, norms.before_mlp, hidden))
    return _add(layer, hidden, _norm(layer, norms.behind_mlp, output))


def _add(layer: nn.Module, hidden: Tensor, output: Tensor) -> Tensor:
    """A residual connection."""
    scale = family_of(layer.self_attn).residual_scale
    return hidden + (output if scale is None else output * getattr(layer, scale))


def _norm(layer: nn.Module, name: str | None, hidden: Tensor) -> Tensor:
    """One of a layer's norms; None for none."""
    if name is None:
        return hidden
    return norm(family_of(layer.self_attn).norms, getattr(layer, name), hidden)


def norm(norms: Norms, module: nn.Module, hidden: Tensor) -> Tensor:
    """RMS norm of ``(batch, tokens, hidden)``, computed as a family does it."""
    if _kernels_run(hidden):
        from ragkv.kernels.elementwise import rms_norm

        epsilon = getattr(module, norms.epsilon)
        return rms_norm(hidden, module.weight, epsilon, rounds_once=norms.rounds_once, offset=norms.offset)
    return module(hidden)


def _mlp(layer: nn.Module, hidden: Tensor) -> Tensor:
    mlp = layer.mlp
    fused = family_of(layer.self_attn).fused
    activation = mlp.activation_fn if fused else mlp.act_fn
    if _kernels_run(hidden) and isinstance(activation, nn.SiLU | SiLUActivation):
        from ragkv.kernels.elementwise import gated

        gate, up = mlp.gate_up_proj(hidden).chunk(2, -1) if fused else (mlp.gate_proj(hidden), mlp.up_proj(hidden))
        return mlp.down_proj(gated(gate, up))
    return mlp(hidden)


def _kernels_run(states: Tensor) -> bool:
    """Whether Triton's kernels run on these states. They have no backward pass, which training a context needs."""
    return kernels_run(states.device) and not states.requires_grad


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The language model's head over the last layer's output: ``(batch, tokens, vocab)``."""
    family, last_norm = family_of(model), model.model.norm
    normed = norm(family.norms, last_norm, hidden.to(last_norm.weight.device))
    scores = model.lm_head(normed.to(model.lm_head.weight.device))
    return scores if family.logits_divisor is None else scores / getattr(model.config, family.logits_divisor)
