"""FlashInfer's attention behind the backends' signature, with a mask that says which keys each query sees.

FlashInfer has no attention by position. ``packed`` gives it a bit for every query and key. ``tiles`` needs no mask:
each tile of queries is a request of its own over the shared keys, none beyond its last position, and a variant of the
kernel that is compiled with the positions as one more tensor compares them with the keys'.
"""

from functools import cache

import torch
from torch import Tensor

from ragkv.kernels import on_its_gpu

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


@on_its_gpu
def packed(query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scaling: float) -> Tensor:
    """One bit for every query and key; see `ragkv.models.attention` for the arguments."""
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


@on_its_gpu
def tiles(query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scaling: float) -> Tensor:
    """Requests of `TILE` queries, each over the keys up to its last position; see `ragkv.models.attention`."""
    check(query)
    (_, heads, queries, head_dim), kv_heads, device = query.shape, key.shape[1], key.device
    ends = torch.arange(TILE, queries + TILE, TILE).clamp(max=queries)  # of each tile
    lengths = positions[(ends - 1).to(device)].cpu() + 1  # of the keys that it sees
    order = torch.arange(int(lengths[-1]), device=device, dtype=torch.int32)
    wrapper, zero = _wrapper(device, query.dtype, key.dtype, head_dim), torch.zeros(1, dtype=torch.int32)
    wrapper.plan(
        torch.cat((zero, ends.int())),
        torch.cat((zero, lengths.cumsum(0).int())),
        torch.cat([order[:length] for length in lengths.tolist()]),  # pages of one token
        torch.ones(len(lengths), dtype=torch.int32),
        heads,
        kv_heads,
        head_dim,
        1,
        packed_custom_mask=torch.zeros(1, dtype=torch.uint8, device=device),  # only so that the variant is asked
        q_data_type=query.dtype,
        kv_data_type=key.dtype,
    )
    pages = tuple(states[0].transpose(0, 1)[:, :, None] for states in (key, value))  # (tokens, kv_heads, 1, head_dim)
    asked = query[0].transpose(0, 1).contiguous()
    return wrapper.run(asked, pages, positions.int(), scaling).transpose(0, 1)[None]


_VARIANT = """
struct PositionCausal : AttentionVariantBase {
  static constexpr bool use_softmax = true;
  uint32_t qo_len, kv_len, window_left;
  float sm_scale_log2;
  int32_t* positions;

  template <typename Params>
  __device__ __host__ PositionCausal(const Params& params, uint32_t batch_idx, uint8_t* smem_ptr) {
    qo_len = params.get_qo_len(batch_idx);
    kv_len = params.get_kv_len(batch_idx);
    window_left = kv_len;
    sm_scale_log2 = params.sm_scale * math::log2e;
    positions = params.positions + params.q_indptr[batch_idx];
  }

  REGISTER_LOGITS_MASK(params, batch_idx, qo_idx, kv_idx, qo_head_idx, kv_head_idx, {
    return qo_idx < qo_len && int32_t(kv_idx) <= positions[qo_idx];
  })
};
"""


@cache
def _wrapper(device: torch.device, query: torch.dtype, key: torch.dtype, head_dim: int):  # type: ignore[no-untyped-def]
    """What runs the variant, compiled when it is first asked for."""
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    name = f"ragkv_position_causal_{query}_{key}_{head_dim}".replace("torch.", "")
    kinds = [query, key, query, torch.int32, head_dim, head_dim]
    added = [["positions"], ["int32_t"], ["sm_scale"], ["double"]]
    room = torch.empty(WORKSPACE, dtype=torch.uint8, device=device)
    return BatchPrefillWithPagedKVCacheWrapper(
        room, "HND", backend="fa2", jit_args=[name, *kinds, *added, "PositionCausal", _VARIANT]
    )
