"""How the attention kernels divide their work: sizes of tiles and blocks, and the parts that keys are split into."""

from functools import cache
from math import ceil
from typing import NamedTuple

import torch
import triton
from torch import Tensor


class Config(NamedTuple):
    """How the kernels are compiled.

    Attributes
    ----------
    rows
        Of a tile: queries times the heads of a group.
    keys
        Of a block.
    warps
        Per program.
    stages
        Blocks of keys and values in flight at a time.
    resident
        Tiles at a time on one multiprocessor.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    resident: int = 1


def config(head_dim: int, dtype: torch.dtype, rows: int = 2**20) -> Config:
    """The configuration for a head dimension and dtype.

    For head dimensions of 128 it is the fastest of those tried on an H200, for others what fits into shared memory.
    `rows` is the number of rows of all tiles of a KV head; if there are few, tiles are small.
    """
    if dtype == torch.float32:
        return Config(64, 32, 4, 2)
    if rows <= 16:
        return Config(16, 32, 2, 3, 2)
    if rows <= 256:
        return Config(64, 64, 4, 3, 2)
    if head_dim <= 64:
        return Config(128, 128, 4, 2, 2)
    if head_dim <= 128 and 1024 < rows <= 4096:  # too few tiles of 128 rows to fill an H200
        return Config(64, 64, 4, 3, 2)
    return Config(128, 128, 8, 3) if head_dim <= 128 else Config(128, 64, 8, 2)


def fitting(chosen: Config, head_dim: int, dtype: torch.dtype, memory: int) -> Config:
    """The configuration, with fewer stages and smaller blocks if a multiprocessor has only `memory` shared bytes."""
    row_bytes = width(head_dim) * dtype.itemsize
    candidates = [chosen, *(chosen._replace(keys=min(chosen.keys, keys), stages=2) for keys in (128, 64, 32))]
    candidates += [chosen._replace(rows=rows, keys=32, stages=stages) for rows in (64, 32, 16) for stages in (2, 1)]
    candidates.append(Config(16, 16, 4, 1))

    def fits(candidate: Config) -> bool:
        return (candidate.rows + 2 * candidate.stages * candidate.keys) * row_bytes <= memory

    return next(filter(fits, candidates), candidates[-1])


def tile(query: Tensor, key: Tensor) -> Config:
    """The configuration for these shapes on their GPU."""
    head_dim = key.shape[3]
    group = query.shape[1] // key.shape[1]
    _, shared_memory = _gpu(key.device)
    return fitting(config(head_dim, key.dtype, group * query.shape[2]), head_dim, key.dtype, shared_memory)


@cache
def _gpu(device: torch.device) -> tuple[int, int]:
    """A GPU's number of multiprocessors, and the shared memory of each in bytes; on a CPU, values for tests."""
    if device.type != "cuda":
        return 8, 2**18
    properties = torch.cuda.get_device_properties(device)
    shared_memory = getattr(properties, "shared_memory_per_block_optin", 2**16)  # AMD GPUs do not report it
    return properties.multi_processor_count, shared_memory


def width(head_dim: int) -> int:
    """The width of a tile, a power of two."""
    return max(16, triton.next_power_of_2(head_dim))


def split(query: Tensor, key: Tensor, chosen: Config) -> int:
    """The number of parts that the keys are split into, from the shapes alone, so that all multiprocessors are busy.

    With many tiles, light ones fill the gaps that heavy ones leave, and one part is enough. With few tiles the GPU
    works in waves; a wave takes as long as a part's keys and the overhead of a tile.
    """
    _, heads, queries, _ = query.shape
    batch, kv_heads, tokens, _ = key.shape
    tiles = triton.cdiv(heads // kv_heads * queries, chosen.rows) * batch * kv_heads
    multiprocessors, _ = _gpu(key.device)
    at_a_time = multiprocessors * chosen.resident
    if tiles >= 2 * at_a_time:
        return 1
    most = max(1, min(64, tokens // (4 * chosen.keys)))

    def duration(parts: int) -> float:
        waves = ceil(tiles * parts / at_a_time)
        return waves * (tokens / parts + 2 * chosen.keys)

    return min(range(1, most + 1), key=duration)
