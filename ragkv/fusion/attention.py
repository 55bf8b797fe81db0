"""Attention of the rows of several prompts, each to the keys of its own prompt."""

import torch
from torch import Tensor

from ragkv.fusion.rows import Rows
from ragkv.models.attention import Backend, attention_weights, auto, has_kernel, triton


def attend(backend: Backend, query: Tensor, key: Tensor, value: Tensor, rows: Rows, scaling: float) -> Tensor:
    """What a backend computes for each prompt; by one launch of the package's own kernel for all of them if it can.

    Parameters
    ----------
    backend
        See `ragkv.models.attention`.
    query
        ``(1, heads, rows, head_dim)``, rotated.
    key, value
        Of all slots, ``(1, kv_heads, slots, head_dim)`` each, the keys rotated.

    Returns
    -------
    Tensor
        ``(1, heads, rows, head_dim)``.
    """
    if rows.of_one_prompt:
        return backend(query, key, value, rows.positions, scaling)
    if _kernel_takes(backend, query, rows):
        from ragkv.kernels.attention import position_causal

        return position_causal(query, key, value, rows.slots, scaling, firsts=rows.firsts)
    attended = []
    for span, extent, positions in zip(rows.spans, rows.extents, rows.by_prompt, strict=True):
        if span:
            keys, values = (states[:, :, extent.start : extent.stop] for states in (key, value))
            attended.append(backend(query[:, :, span.start : span.stop], keys, values, positions, scaling))
    return torch.cat(attended, dim=2)


def summed_weights(query: Tensor, key: Tensor, rows: Rows, scaling: float, power: float) -> Tensor:
    """Attention weights, raised to `power` and summed over the rows, ``(heads, slots)`` in float32.

    See `attend` for the other arguments.
    """
    if rows.of_one_prompt:
        return attention_weights(query, key, rows.positions, scaling, power)
    if has_kernel(query):
        from ragkv.kernels.scores import attention_scores

        return attention_scores(query, key, None, rows.slots, scaling, power, firsts=rows.firsts)[1]
    by_prompt = []
    for span, extent, positions in zip(rows.spans, rows.extents, rows.by_prompt, strict=True):
        queries, keys = query[:, :, span.start : span.stop], key[:, :, extent.start : extent.stop]
        by_prompt.append(attention_weights(queries, keys, positions, scaling, power))
    return torch.cat(by_prompt, dim=1)


def _kernel_takes(backend: Backend, query: Tensor, rows: Rows) -> bool:
    """Whether the backend is the package's own kernel, as `auto` is where not all tokens are computed."""
    tokens = rows.extents[-1].stop
    return has_kernel(query) and (backend is triton or (backend is auto and len(rows) < tokens))
