"""The speed of this machine, measured in about a second: enough to plan how long a profile takes."""

import platform
from collections.abc import Callable
from functools import partial

import torch

from ragkv.bench.timing import measure
from ragkv.costs.speed import Speed

LAYER_OPERATIONS = 150  # small operations that a layer starts: norms, rotations, reshapes, attention
WIDTH = 4096
REUSE = {"cpu": 0.05, "cuda": 0.01}  # the speed of placing stored keys and values, as a share of the memory's
REPEATS = 7


def measure_speed(device: torch.device, dtype: torch.dtype) -> Speed:
    """What one job with one thread reaches: several of them run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        weights = torch.ones(WIDTH, 4 * WIDTH, dtype=dtype, device=device)  # more than fits into a processor's caches
        square = weights[:, :WIDTH].contiguous()
        tokens = torch.ones(WIDTH if device.type == "cuda" else 128, WIDTH, dtype=dtype, device=device)
        small = torch.ones(64, device=device)
        parts: dict[str, Callable[[], object]] = {
            "product": lambda: tokens @ square,
            "reading": lambda: tokens[:1] @ weights,
            "starting": lambda: [small + 1 for _ in range(LAYER_OPERATIONS)],
        }
        times = measure({name: partial(_finished, run, device) for name, run in parts.items()}, REPEATS)
    finally:
        torch.set_num_threads(threads)
    seconds = times["p50"] / 1e3
    memory_gbs = weights.nbytes / seconds["reading"] / 1e9
    return Speed(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        tflops=2 * tokens.numel() * WIDTH / seconds["product"] / 1e12,
        memory_gbs=memory_gbs,
        reuse_gbs=REUSE[device.type] * memory_gbs,
        layer=seconds["starting"],
    )


def _finished(run: Callable[[], object], device: torch.device) -> None:
    """Call a function, and wait for the GPU."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
