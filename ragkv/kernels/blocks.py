"""Segments of several lengths, cut into blocks of tokens for one kernel, and tables of numbers that tell it where."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def blocks_of(lengths: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each block of up to `rows` tokens, the number of its segment, and its first token there."""
    blocks: np.ndarray = -(-lengths // rows)
    number: np.ndarray = np.repeat(np.arange(len(lengths)), blocks)
    return number, (np.arange(len(number)) - (blocks.cumsum() - blocks)[number]) * rows


def to_gpu(parts: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    """Arrays of whole numbers, as tensors that share one copy to a device."""
    table = torch.from_numpy(np.concatenate(parts)).to(device, non_blocking=True)
    return table.split([len(part) for part in parts])
