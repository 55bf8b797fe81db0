"""What bounds a prefill on this machine: its ceilings, attention, decoding, precompute and the store, each measured."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from transformers import PretrainedConfig, PreTrainedModel

from ragkv.bench.random_models import random_prompt
from ragkv.bench.timing import measure
from ragkv.costs.prefill import BF16_BYTES
from ragkv.costs.roofline import Machine
from ragkv.costs.shape import Shape
from ragkv.fusion.decoding import decode
from ragkv.fusion.prefill import fused_prefill
from ragkv.fusion.workspace import Workspace
from ragkv.loading.layer_groups import layer_groups
from ragkv.loading.memory import InMemory
from ragkv.loading.segments import Segments
from ragkv.loading.transfer import Transfer
from ragkv.models import flashinfer
from ragkv.models.attention import BACKENDS
from ragkv.models.segment_pass import compute_segment
from ragkv.prompt import Prompt
from ragkv.selectors import get_selector
from ragkv.store import KVStore, Layout


def ceilings(device: torch.device) -> dict[str, float]:
    """The highest speeds that this machine reaches.

    Returns
    -------
    dict
        ``tflops``: matrix products in bfloat16, in 1e12 operations a second. ``pinned_gbs`` and ``memory_gbs``: copies
        from pinned memory to the GPU and within the GPU's memory (read and written), in 1e9 bytes a second.
    """
    from triton.testing import do_bench

    left, right = torch.randn(2, 8192, 8192, dtype=torch.bfloat16, device=device)
    pinned = torch.empty(2**30, dtype=torch.uint8).pin_memory()
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {
        "tflops": 2 * 8192**3 / do_bench(lambda: left @ right) / 1e9,
        "pinned_gbs": 2**30 / do_bench(lambda: source.copy_(pinned, non_blocking=True)) / 1e6,
        "memory_gbs": 2 * 2**30 / do_bench(lambda: target.copy_(source)) / 1e6,
    }


def bring(prompt: Prompt, segments: Segments, workspace: Workspace) -> None:
    """Copy all layers of a prompt's segments to the workspace's GPU as a fused prefill does, and do nothing else."""
    memory = workspace.memory
    model = memory.model
    layout = Layout.of(model, segments.format)
    opened = [segments.open(layout, segment) for segment in prompt.segments(model.config.bos_token_id)]
    layers = range(layout.layers)
    groups = layer_groups(layers, memory.devices)
    transfer = Transfer(opened, groups, model.device, memory.workers.get(model.device))
    transfer.start(lambda group: None)
    for index in layers:
        transfer.layer(index)
    torch.cuda.synchronize(model.device)


def decode_row(model: PreTrainedModel, tokens: int, *, chunk_tokens: int, repeats: int, machine: Machine) -> dict:
    """TPOT after a fused prefill, compared with the time to read the weights once.

    Returns
    -------
    dict
        ``tokens`` of the prompt; ``tpot`` in milliseconds, the median; ``weights``: milliseconds to read them once;
        ``ratio`` of the two.
    """
    prompt = random_prompt(model.config.vocab_size, tokens, chunk_tokens)
    memory, workspace = InMemory.computed(model, prompt), Workspace(model, tokens + 64)
    prefill = fused_prefill(model, prompt, memory, get_selector("full_reuse"), workspace=workspace)
    times = sorted(decode(model, prefill, max_new_tokens=33).tpot or 0.0 for _ in range(repeats + 1))
    tpot = times[len(times) // 2] * 1e3
    weights = machine.moving(BF16_BYTES * Shape.of_config(model.config).weights) * 1e3
    return {"tokens": tokens, "tpot": tpot, "weights": weights, "ratio": tpot / weights}


def precompute_row(model: PreTrainedModel, chunk_tokens: int, repeats: int) -> dict:
    """Precomputing a chunk, compared with a plain forward pass of transformers over it.

    Returns
    -------
    dict
        ``tokens`` of the chunk; ``plain`` and ``precompute`` in milliseconds, medians; ``tokens_per_second``;
        ``ratio``: precompute over plain.
    """
    segment = random_prompt(model.config.vocab_size, chunk_tokens + 96, chunk_tokens).segments(1)[1]

    @torch.inference_mode()
    def plain() -> None:
        ids = torch.tensor([segment.context + segment.ids]).to(model.device)
        float(model(ids).logits[0, -1, 0])

    times = measure({"plain": plain, "precompute": partial(compute_segment, model, segment)}, repeats)["p50"]
    return {
        "tokens": len(segment.ids),
        **times,
        "tokens_per_second": len(segment.ids) / times["precompute"] * 1e3,
        "ratio": times["precompute"] / times["plain"],
    }


def store_rows(model: PreTrainedModel, tokens: int, store: KVStore, *, chunk_tokens: int, repeats: int) -> pd.DataFrame:
    """How fast a prompt's segments are written to a local store, checked and read.

    Returns
    -------
    DataFrame
        ``what``, and ``gbs``: 1e9 bytes a second, by the median time. ``read`` takes one layer after the other;
        ``read ahead`` is what a prefill on a GPU does, up to the GPU; ``plain read`` only reads the files.
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
    """Each backend's attention of one layer: queries of a random share of the tokens over the keys of all.

    Returns
    -------
    DataFrame
        ``tokens, backend``; ``ms``, the median; ``tflops``: 1e12 operations a second, counting only keys that are not
        masked.
    """
    from triton.testing import do_bench

    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = Shape.of_config(config).head_dim
    generator = torch.Generator("cuda").manual_seed(0)
    shuffled = torch.randperm(tokens, generator=generator, device="cuda")
    positions = shuffled[: int(ratio * tokens)].sort().values
    options: dict = {"generator": generator, "device": "cuda", "dtype": torch.bfloat16}
    query = torch.randn(1, heads, len(positions), head_dim, **options)
    key, value = torch.randn(2, 1, kv_heads, tokens, head_dim, **options)
    useful = 4 * heads * head_dim * float((positions + 1).sum())  # operations
    table = []
    for name, backend in BACKENDS.items():
        if name.startswith("flashinfer") and flashinfer.missing():
            continue
        run = partial(backend, query, key, value, positions, head_dim**-0.5)
        milliseconds = do_bench(run, return_mode="median")
        table.append({"tokens": tokens, "backend": name, "ms": milliseconds, "tflops": useful / milliseconds / 1e9})
    return pd.DataFrame(table)
