"""What bounds a prefill on this machine: its ceilings, attention, decoding, precompute and the store, each measured."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from transformers import PretrainedConfig, PreTrainedModel

from ragkv.bench.random_models import random_prompt
from ragkv.bench.timing import measure
from ragkv.costs.shape import Shape
from ragkv.fusion.decoding import decode
from ragkv.fusion.prefill import fused_prefill
from ragkv.fusion.workspace import Workspace
from ragkv.loading.memory import InMemory
from ragkv.loading.parts import parts_of
from ragkv.loading.segments import Segments
from ragkv.loading.transfer import Transfer
from ragkv.models import flashinfer
from ragkv.models.attention import BACKENDS
from ragkv.models.segment_pass import compute_segment
from ragkv.prompt import Prompt
from ragkv.selectors import get_selector
from ragkv.store import KVStore, Layout


def ceilings(device: torch.device) -> dict[str, float]:
    """What this machine reaches: bf16 matrix products in TFLOP/s, copies from pinned memory and on the GPU in GB/s."""
    from triton.testing import do_bench

    left, right = torch.randn(2, 8192, 8192, dtype=torch.bfloat16, device=device)
    states, pinned = (
        torch.empty(2**30, dtype=torch.uint8, device=device),
        torch.empty(2**30, dtype=torch.uint8).pin_memory(),
    )
    other = torch.empty_like(states)
    return {
        "tflops": 2 * 8192**3 / do_bench(lambda: left @ right) / 1e9,
        "pinned_gbs": 2**30 / do_bench(lambda: states.copy_(pinned, non_blocking=True)) / 1e6,
        "memory_gbs": 2 * 2**30 / do_bench(lambda: other.copy_(states)) / 1e6,
    }


def bring(prompt: Prompt, segments: Segments, workspace: Workspace) -> None:
    """All layers of a prompt's segments to the workspace's GPU, as a fused prefill does it, and nothing else."""
    memory = workspace.memory
    model = memory.model
    layout = Layout.of(model, segments.format)
    opened = [segments.open(layout, segment) for segment in prompt.segments(model.config.bos_token_id)]
    layers = range(layout.layers)
    parts = parts_of(layers, memory.devices)
    transfer = Transfer(opened, parts, model.device, memory.processes.get(model.device))
    transfer.start(lambda part: None)
    for index in layers:
        transfer.layer(index)
    torch.cuda.synchronize(model.device)


def decode_row(model: PreTrainedModel, tokens: int, *, chunk_tokens: int, repeats: int, bandwidth: float) -> dict:
    """TPOT behind a fused prefill, over the time to read the weights once.

    Parameters
    ----------
    bandwidth
        Of the GPU's memory, in GB/s.

    Returns
    -------
    dict
        ``tokens, tpot`` (milliseconds, the median), ``weights`` (milliseconds to read them once), ``ratio``.
    """
    prompt = random_prompt(model.config.vocab_size, tokens, chunk_tokens)
    store, room = InMemory.computed(model, prompt), Workspace(model, tokens + 64)
    prefill = fused_prefill(model, prompt, store, get_selector("full_reuse"), workspace=room)
    times = sorted(decode(model, prefill, max_new_tokens=33).tpot or 0.0 for _ in range(repeats + 1))
    shape = Shape.of_config(model.config)
    weights = 2 * shape.weights / bandwidth / 1e6
    tpot = times[len(times) // 2] * 1e3
    return {"tokens": tokens, "tpot": tpot, "weights": weights, "ratio": tpot / weights}


def precompute_row(model: PreTrainedModel, chunk_tokens: int, repeats: int) -> dict:
    """A chunk's precompute over a plain forward pass of transformers over it.

    Returns
    -------
    dict
        ``tokens`` of the chunk, ``plain`` and ``precompute`` in milliseconds (medians), tokens a second, ``ratio``.
    """
    segment = random_prompt(model.config.vocab_size, chunk_tokens + 96, chunk_tokens).segments(1)[1]

    @torch.inference_mode()
    def plain() -> None:
        float(model(torch.tensor([segment.context + segment.ids]).to(model.device)).logits[0, -1, 0])

    times = measure({"plain": plain, "precompute": partial(compute_segment, model, segment)}, repeats)["p50"]
    return {"tokens": len(segment.ids), **times, "tokens_per_second": len(segment.ids) / times["precompute"] * 1e3} | {
        "ratio": times["precompute"] / times["plain"]
    }


def store_rows(model: PreTrainedModel, tokens: int, store: KVStore, *, chunk_tokens: int, repeats: int) -> pd.DataFrame:
    """How fast a prompt's segments are written to a local store, checked and read.

    Returns
    -------
    DataFrame
        ``what, gbs``: 1e9 bytes a second, by the median time. ``read`` is one layer after the other, ``read ahead``
        what a prefill on a GPU does, up to the GPU; ``plain read`` reads the files and does nothing else.
    """
    prompt, layout = random_prompt(model.config.vocab_size, tokens, chunk_tokens), Layout.of(model, store.format)
    memory = InMemory.computed(model, prompt)
    segments = list(memory.segments)

    def read() -> None:
        for segment in segments:
            stored = store.open(layout, segment)
            for index in range(layout.layers):
                stored.layer(index)

    runs: dict[str, Callable[[], object]] = {
        "write": partial(memory.into, store, model),
        "plain read": lambda: [Path(store.path(layout.key(segment))).read_bytes() for segment in segments],
        "check": lambda: [store.check(layout, segment) for segment in segments],
        "read": read,
    }
    if model.device.type == "cuda":
        runs["read ahead"] = partial(bring, prompt, store, Workspace(model, tokens))
    times = measure(runs, repeats)["p50"]
    size = sum(store.size(layout, segment) for segment in segments)
    return pd.DataFrame({"what": times.index, "gbs": size / times.to_numpy() / 1e6})


def attention_rows(config: PretrainedConfig, tokens: int, ratio: float = 0.15) -> pd.DataFrame:
    """Each backend's attention of one layer, for a share of the tokens, drawn at random, over the keys of all.

    Returns
    -------
    DataFrame
        ``tokens, backend, ms`` (the median), ``tflops``: operations on keys that are seen, in TFLOP/s.
    """
    from triton.testing import do_bench

    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, Shape.of_config(config).head_dim
    random = torch.Generator("cuda").manual_seed(0)
    positions = torch.randperm(tokens, generator=random, device="cuda")[: int(ratio * tokens)].sort().values
    options: dict = {"generator": random, "device": "cuda", "dtype": torch.bfloat16}
    query = torch.randn(1, heads, len(positions), head_dim, **options)
    key, value = torch.randn(2, 1, kv_heads, tokens, head_dim, **options)
    useful, table = 4 * heads * head_dim * float((positions + 1).sum()), []
    for name, backend in BACKENDS.items():
        if name.startswith("flashinfer") and flashinfer.missing():
            continue
        run = partial(backend, query, key, value, positions, head_dim**-0.5)
        milliseconds = do_bench(run, return_mode="median")
        table.append({"tokens": tokens, "backend": name, "ms": milliseconds, "tflops": useful / milliseconds / 1e9})
    return pd.DataFrame(table)
