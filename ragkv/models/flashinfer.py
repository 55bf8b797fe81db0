"""FlashInfer's attention with the signature of the other backends.

FlashInfer has no attention by position. ``packed`` gives it a mask with a bit for every query and key. ``tiles`` needs
no mask: each tile of queries is a request of its own over the shared keys up to the tile's last position. A variant of
the kernel, compiled with the positions as an additional tensor, compares them with the keys' positions.
"""

from functools import cache

import torch
from torch import Tensor

from ragkv.kernels import on_its_gpu

TILE = 128  # queries of a request
WORKSPACE = 2**28  # bytes of FlashInfer's scratch memory


@cache
def missing() -> str | None:
    """The reason why FlashInfer cannot run here; None if it can."""
    try:
        import flashinfer  # noqa: F401
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if torch.cuda.is_available() else "PyTorch sees no GPU"


def check(query: Tensor) -> None:
    """Refuse heads that FlashInfer has no kernel for.

    Raises
    ------
    ValueError
        Another head dimension or dtype.
    """
    if query.shape[-1] not in (64, 128, 256) or query.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"the flashinfer backends have head dimensions 64, 128 and 256 in float16 and bfloat16, not "
            f"{query.shape[-1]} in {str(query.dtype).removeprefix('torch.')}: use backend triton or sdpa"
        )


@on_its_gpu
def packed(query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scaling: float) -> Tensor:
    """A mask with one bit for every query and key; see `ragkv.models.attention` for the arguments."""
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
    _, heads, queries, head_dim = query.shape
    kv_heads, device = key.shape[1], key.device
    ends = torch.arange(TILE, queries + TILE, TILE).clamp(max=queries)  # where each tile ends
    lengths = positions[(ends - 1).to(device)].cpu() + 1  # how many keys each tile reads
    order = torch.arange(int(lengths[-1]), device=device, dtype=torch.int32)
    zero = torch.zeros(1, dtype=torch.int32)
    wrapper = _wrapper(device, query.dtype, key.dtype, head_dim)
    wrapper.plan(
        torch.cat((zero, ends.int())),
        torch.cat((zero, lengths.cumsum(0).int())),
        torch.cat([order[:length] for length in lengths.tolist()]),  # pages of one token
        torch.ones(len(lengths), dtype=torch.int32),
        heads,
        kv_heads,
        head_dim,
        1,
        packed_custom_mask=torch.zeros(
            1, dtype=torch.uint8, device=device
        ),  # unused, but without a mask the variant is not called
        q_data_type=query.dtype,
        kv_data_type=key.dtype,
    )
    pages = tuple(states[0].transpose(0, 1)[:, :, None] for states in (key, value))  # (tokens, kv_heads, 1, head_dim)
    rows = query[0].transpose(0, 1).contiguous()  # (queries, heads, head_dim)
    return wrapper.run(rows, pages, positions.int(), scaling).transpose(0, 1)[None]


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
    """FlashInfer's wrapper of the variant, which is compiled at the first call."""
    from flashinfer import BatchPrefillWithPagedKVCacheWrapper

    name = f"ragkv_position_causal_{query}_{key}_{head_dim}".replace("torch.", "")
    kinds = [query, key, query, torch.int32, head_dim, head_dim]
    added = [["positions"], ["int32_t"], ["sm_scale"], ["double"]]
    scratch = torch.empty(WORKSPACE, dtype=torch.uint8, device=device)
    return BatchPrefillWithPagedKVCacheWrapper(
        scratch, "HND", backend="fa2", jit_args=[name, *kinds, *added, "PositionCausal", _VARIANT]
    )
