"""Tables for kernels that work on several segments at once, each cut into blocks of tokens."""

from collections.abc import Sequence

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

ALIGNMENT = tl.constexpr(16)  # bytes that a thread reads or writes at once, if they begin at a multiple of it


def blocks_of(lengths: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut segments into blocks of up to `rows` tokens.

    Returns
    -------
    segments, tokens
        For each block, the index of its segment and its first token there.
    """
    blocks: np.ndarray = -(-lengths // rows)
    segments: np.ndarray = np.repeat(np.arange(len(lengths)), blocks)
    first_blocks = blocks.cumsum() - blocks  # of each segment
    return segments, (np.arange(len(segments)) - first_blocks[segments]) * rows


def aligned(*places: np.ndarray | int) -> bool:
    """Whether all these addresses and distances, in bytes, are multiples of `ALIGNMENT`."""
    return not any(np.any(np.asarray(some) % ALIGNMENT.value) for some in places)


def to_gpu(tables: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    """Arrays of integers as tensors on a device, by one copy."""
    joined = torch.from_numpy(np.concatenate(tables)).to(device, non_blocking=True)
    return joined.split([len(table) for table in tables])
