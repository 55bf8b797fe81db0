"""FlashInfer's attention behind the backends' signature, with a mask that says which keys each query sees.

FlashInfer has no attention by position, so its custom masks stand in: for all of the keys at once (``packed``), or for
tiles of queries that each are a request of their own over the shared keys, none beyond the tile's last position
(``tiles``).
"""

from functools import cache

import torch
from torch import Tensor

TILE = 128  # queries of a request
WORKSPACE = 2**28  # bytes


@cache
def missing() -> str | None:
    """Why FlashInfer cannot be used here; None if it can."""
    try:
        import flashinfer  # noqa: F401
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if torch.cuda.is_available() else "PyTorch sees no GPU"


def check(query: Tensor) -> None:
    """
    Raises
    ------
    ValueError
        FlashInfer has no kernel for these heads.
    """
    if query.shape[-1] not in (64, 128, 256) or query.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"the flashinfer backends have head dimensions 64, 128 and 256 in float16 and bfloat16, not "
            f"{query.shape[-1]} in {str(query.dtype).removeprefix('torch.')}: use backend triton or sdpa"
        )


def packed(query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scaling: float) -> Tensor:
    """One bit for every query and key; see `ragkv.attention` for the arguments."""
    check(query)
    from flashinfer import packbits, single_prefill_with_kv_cache

    mask = positions[:, None] >= torch.arange(key.shape[2], device=key.device)  # (queries, keys)
    attended = single_prefill_with_kv_cache(
        query[0].transpose(0, 1).contiguous(),
        key[0],
        value[0],
        packed_custom_mask=packbits(mask.flatten(), bitorder="little"),
        kv_layout="HND",
        sm_scale=scaling,
        backend="fa2",
    )
    return attended.transpose(0, 1)[None]


def tiles(query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scaling: float) -> Tensor:
    """Requests of `TILE` queries, each over the keys up to its last position; see `ragkv.attention`."""
    check(query)
    (_, heads, queries, head_dim), kv_heads, device = query.shape, key.shape[1], key.device
    parts = positions.split(TILE)
    lengths = (torch.stack([part[-1] for part in parts]) + 1).tolist()  # of keys that a tile sees
    order = torch.arange(max(lengths), device=device, dtype=torch.int32)
    masks = [part[:, None] >= order[:length] for part, length in zip(parts, lengths, strict=True)]
    wrapper, count = _wrapper(device), len(parts)
    wrapper.plan(
        torch.tensor([0, *(min(queries, TILE * (i + 1)) for i in range(count))], dtype=torch.int32, device=device),
        torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32),
        torch.cat([order[:length] for length in lengths]),  # pages of one token
        torch.ones(count, dtype=torch.int32, device=device),
        heads,
        kv_heads,
        head_dim,
        1,
        custom_mask=torch.cat([mask.flatten() for mask in masks]),
        sm_scale=scaling,
        q_data_type=query.dtype,
        kv_data_type=key.dtype,
    )
    pages = tuple(states[0].transpose(0, 1)[:, :, None] for states in (key, value))  # (tokens, kv_heads, 1, head_dim)
    return wrapper.run(query[0].transpose(0, 1).contiguous(), pages).transpose(0, 1)[None]


@cache
def _wrapper(device: torch.device):  # type: ignore[no-untyped-def]
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    room = torch.empty(WORKSPACE, dtype=torch.uint8, device=device)
    return BatchPrefillWithPagedKVCacheWrapper(room, "HND", backend="fa2")
