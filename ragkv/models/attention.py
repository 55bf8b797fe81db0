"""Position-causal attention: every query attends to all keys at or before its own position.

One signature for all backends, ``backend(query, key, value, positions, scaling)``:

Parameters
----------
query : Tensor
    ``(batch, heads, queries, head_dim)``, rotated.
key, value : Tensor
    ``(batch, kv_heads, tokens, head_dim)``, the keys rotated; each KV head serves ``heads / kv_heads`` heads.
positions : Tensor
    ``(queries,)``, the queries' positions among the keys, strictly ascending.
scaling : float
    Factor of the products before the softmax.

Notes
-----
The result is ``(batch, heads, queries, head_dim)``. ``sdpa`` is the reference and runs everywhere. ``triton`` needs a
GPU. ``flashinfer`` and ``flashinfer_tiles`` also need the package of that name (see `ragkv.models.flashinfer`).
``auto`` chooses the fastest of ``sdpa`` and ``triton``.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ragkv.kernels import kernels_run
from ragkv.models import flashinfer

TILE = 256  # queries that share a mask on a CPU


def sdpa(query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scaling: float) -> Tensor:
    """PyTorch's attention. On a CPU the queries are divided into tiles that read no key beyond their last position."""
    gqa = query.shape[1] != key.shape[1]
    queries, tokens = query.shape[2], key.shape[2]
    if queries == tokens:  # the positions ascend, so every token has a query
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=gqa)
    tile = TILE if query.device.type == "cpu" else queries
    attended = []
    for part, part_positions in zip(query.split(tile, dim=2), positions.split(tile), strict=True):
        seen = int(part_positions[-1]) + 1 if tile < queries else tokens
        mask = part_positions[:, None] >= torch.arange(seen, device=positions.device)  # (queries, keys)
        attended.append(
            scaled_dot_product_attention(
                part, key[:, :, :seen], value[:, :, :seen], attn_mask=mask, scale=scaling, enable_gqa=gqa
            )
        )
    return torch.cat(attended, dim=2)


Backend = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def triton(query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scaling: float) -> Tensor:
    """The package's own kernel: a tile of queries reads no key beyond its highest position.

    Raises
    ------
    ValueError
        The kernel does not support the head dimension or dtype.
    """
    from ragkv.kernels.attention import position_causal

    if not _in_triton(query):
        raise ValueError(
            f"the triton backend has head dimensions up to 256 in float32, bfloat16 and float16, not {query.shape[-1]} "
            f"in {str(query.dtype).removeprefix('torch.')}: use backend sdpa"
        )
    return position_causal(query, key, value, positions, scaling)


def auto(query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scaling: float) -> Tensor:
    """The fastest as measured: PyTorch's if every token has a query or there is no GPU, otherwise ``triton``."""
    backend = triton if has_kernel(query) and query.shape[2] < key.shape[2] else sdpa
    return backend(query, key, value, positions, scaling)


def has_kernel(query: Tensor) -> bool:
    """Whether the package's own kernel runs on this device and supports these heads."""
    return kernels_run(query.device) and _in_triton(query)


def _in_triton(query: Tensor) -> bool:
    return query.shape[-1] <= 256 and query.dtype in (torch.float32, torch.bfloat16, torch.float16)


def attention_weights(query: Tensor, key: Tensor, positions: Tensor, scaling: float, power: float = 1.0) -> Tensor:
    """Weights of position-causal attention, raised to `power` and summed over the queries.

    Returns
    -------
    Tensor
        ``(heads, tokens)`` in float32.
    """
    if has_kernel(query):
        from ragkv.kernels.scores import attention_scores

        return attention_scores(query, key, None, positions, scaling, power)[1]
    kv_heads, tokens = key.shape[1:3]
    grouped = query[0].float().unflatten(0, (kv_heads, -1))  # (kv_heads, group, queries, head_dim)
    products = grouped @ key[0].float()[:, None].mT  # (kv_heads, group, queries, tokens)
    future = positions[:, None] < torch.arange(tokens, device=positions.device)
    return (products * scaling).masked_fill(future, float("-inf")).softmax(-1).pow(power).sum(2).flatten(0, 1)


BACKENDS: dict[str, Backend] = {
    "auto": auto,
    "sdpa": sdpa,
    "triton": triton,
    "flashinfer": flashinfer.packed,
    "flashinfer_tiles": flashinfer.tiles,
}


def get_backend(name: str) -> Backend:
    """The attention backend of that name. If FlashInfer cannot run here, ``auto`` replaces it, which is logged.

    Raises
    ------
    ValueError
        There is no such backend.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown attention backend {name!r}: choose one of {', '.join(BACKENDS)}")
    if name.startswith("flashinfer") and (reason := flashinfer.missing()):
        logging.getLogger("ragkv").warning("backend auto instead of %s, which cannot run here: %s", name, reason)
        return auto
    return BACKENDS[name]
