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
    normed = attention_input(layer, hidden)

    if choose is not None:
        fresh = keys_values(attention, normed)
        kept = choose(normed, fresh)
        keys, values = place(fresh)
        hidden, normed, positions = hidden[:, kept], normed[:, kept], positions[kept]
        query = queries(attention, normed)
    elif side_stream is not None:
        main_stream = torch.cuda.current_stream(hidden.device)
        side_stream.wait_stream(main_stream)
        with torch.cuda.stream(side_stream):
            keys, values = place(keys_values(attention, normed))
        query = queries(attention, normed)
        main_stream.wait_stream(side_stream)
    else:
        query, keys, values = _states(attention, "qkv", normed)
        keys, values = place((keys, values))
    attended = attend(rotary(query, positions), keys, values, positions, attention.scaling)
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


def attention_input(layer: nn.Module, hidden: Tensor) -> Tensor:
    """A layer's normed input, which queries, keys and values are projected from."""
    return _norm(layer, family_of(layer.self_attn).norms.before_attention, hidden)


def queries(attention: nn.Module, hidden: Tensor) -> Tensor:
    """Queries before rotation: ``(batch, tokens, hidden)`` to ``(batch, heads, tokens, head_dim)``."""
    [query] = _states(attention, "q", hidden)
    return query


def keys_values(attention: nn.Module, hidden: Tensor) -> KV:
    """Keys before rotation and values: ``(batch, tokens, hidden)`` to ``(batch, kv_heads, tokens, head_dim)`` each."""
    keys, values = _states(attention, "kv", hidden)
    return keys, values


def _states(attention: nn.Module, names: Literal["q", "kv", "qkv"], hidden: Tensor) -> list[Tensor]:
    """Queries, keys and values, those that are named, before rotation: ``(batch, heads, tokens, head_dim)`` each."""
    projected = _projected(attention, names, hidden)
    norms = {"q": "q_norm", "k": "k_norm", "v": ""}
    return [_heads(attention, states, norms[name]) for name, states in zip(names, projected, strict=True)]


def _projected(attention: nn.Module, names: str, hidden: Tensor) -> list[Tensor]:
    """The projections to queries, keys and values that are named, ``(batch, tokens, heads * head_dim)`` each."""
    if not family_of(attention).fused:
        return _maps(hidden, *(getattr(attention, f"{name}_proj") for name in names))
    query_width = attention.config.num_attention_heads * attention.head_dim
    key_width = attention.config.num_key_value_heads * attention.head_dim
    rows = {
        "q": slice(0, query_width),
        "k": slice(query_width, query_width + key_width),
        "v": slice(query_width + key_width, query_width + 2 * key_width),
    }
    return [_part(attention.qkv_proj, hidden, rows[name]) for name in names]


def _part(projection: nn.Module, hidden: Tensor, rows: slice) -> Tensor:
    """Some of a projection's outputs. Of other classes than PyTorch's own, such as adapters, all are computed."""
    if _is_plain(projection):
        bias = None if projection.bias is None else projection.bias[rows]
        return linear(hidden, projection.weight[rows], bias)
    return projection(hidden)[..., rows]


def _heads(attention: nn.Module, projected: Tensor, head_norm: str = "") -> Tensor:
    """``(batch, tokens, heads * head_dim)`` to ``(batch, heads, tokens, head_dim)``, normed if the family does that."""
    family = family_of(attention)
    normed_over = family.head_norms if head_norm else None
    if normed_over == "width":
        projected = norm(family.norms, getattr(attention, head_norm), projected)
    states = projected.unflatten(-1, (-1, attention.head_dim))  # (batch, tokens, heads, head_dim)
    if normed_over == "head":
        states = norm(family.norms, getattr(attention, head_norm), states)
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
    attended = attended.transpose(1, 2).flatten(-2)
    hidden = _add(layer, hidden, attended, layer.self_attn.o_proj, norms.behind_attention)
    gated = _gated(layer, _norm(layer, norms.before_mlp, hidden))
    return _add(layer, hidden, gated, layer.mlp.down_proj, norms.behind_mlp)


def _add(layer: nn.Module, hidden: Tensor, states: Tensor, projection: nn.Module, behind: str | None) -> Tensor:
    """A residual connection: to the hidden states are added some states, projected and normed."""
    scale = family_of(layer.self_attn).residual_scale
    if behind is None and scale is None:
        [output] = _maps(states, projection, residual=hidden)
        return output
    output = _norm(layer, behind, projection(states))
    return hidden + (output if scale is None else output * getattr(layer, scale))


def _maps(hidden: Tensor, *linears: nn.Module, residual: Tensor | None = None) -> list[Tensor]:
    """Linear maps of the same states. `residual` is added to the result of a single one."""
    if _one_token(hidden, *linears):
        from ragkv.kernels import one_token

        weights, biases = [linear.weight for linear in linears], [linear.bias for linear in linears]
        return one_token.linear(hidden, weights, biases, residual)
    results = [linear(hidden) for linear in linears]
    return results if residual is None else [residual + result for result in results]


def _one_token(hidden: Tensor, *linears: nn.Module) -> bool:
    """Whether the kernels for a single token compute these maps of it."""
    if hidden.shape[:-1].numel() != 1 or not _kernels_run(hidden) or not all(map(_is_plain, linears)):
        return False
    weights = [linear.weight for linear in linears]
    biased = {linear.bias is not None for linear in linears}
    return len(biased) == 1 and all(w.dtype == hidden.dtype and w.is_contiguous() for w in weights)


def _is_plain(linear: nn.Module) -> bool:
    """Whether this is PyTorch's own linear map, rather than an adapter or quantised."""
    return type(linear) is nn.Linear and type(linear.weight) is nn.Parameter


def _norm(layer: nn.Module, name: str | None, hidden: Tensor) -> Tensor:
    """One of a layer's norms; None for none."""
    if name is None:
        return hidden
    return norm(family_of(layer.self_attn).norms, getattr(layer, name), hidden)


def norm(norms: Norms, module: nn.Module, hidden: Tensor) -> Tensor:
    """RMS norm over the last dimension of ``(batch, tokens, ..., width)``, computed as a family does it."""
    if _kernels_run(hidden):
        from ragkv.kernels.elementwise import rms_norm

        epsilon = getattr(module, norms.epsilon)
        return rms_norm(hidden, module.weight, epsilon, rounds_once=norms.rounds_once, offset=norms.offset)
    return module(hidden)


def _gated(layer: nn.Module, hidden: Tensor) -> Tensor:
    """The input of the MLP's last projection."""
    mlp = layer.mlp
    fused = family_of(layer.self_attn).fused
    activation = mlp.activation_fn if fused else mlp.act_fn
    silu = isinstance(activation, nn.SiLU | SiLUActivation)
    if silu and not fused and _one_token(hidden, mlp.gate_proj, mlp.up_proj) and mlp.gate_proj.bias is None:
        from ragkv.kernels import one_token

        return one_token.gated(hidden, mlp.gate_proj.weight, mlp.up_proj.weight)
    gate, up = mlp.gate_up_proj(hidden).chunk(2, -1) if fused else (mlp.gate_proj(hidden), mlp.up_proj(hidden))
    if silu and _kernels_run(hidden):
        from ragkv.kernels.elementwise import gated

        return gated(gate, up)
    return activation(gate) * up


def _kernels_run(states: Tensor) -> bool:
    """Whether Triton's kernels run on these states. They have no backward pass, which training a context needs."""
    return kernels_run(states.device) and not states.requires_grad


def logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The language model's head over the last layer's output: ``(batch, tokens, vocab)``."""
    family, last_norm = family_of(model), model.model.norm
    normed = norm(family.norms, last_norm, hidden.to(last_norm.weight.device))
    scores = model.lm_head(normed.to(model.lm_head.weight.device))
    return scores if family.logits_divisor is None else scores / getattr(model.config, family.logits_divisor)
