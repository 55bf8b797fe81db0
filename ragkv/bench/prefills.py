"""TTFT by selector and by where keys and values come from, on models with random weights: latency only.

Called by ``python -m ragkv.bench --shape``. Times go from ids on the host to the first new id on the host.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd
import torch
from transformers import PreTrainedModel

from ragkv.bench.parts import bring
from ragkv.bench.random_models import random_prompt
from ragkv.bench.tiers import tier
from ragkv.bench.timing import measure, nothing
from ragkv.costs.balance import balance
from ragkv.costs.prefill import fused, moved
from ragkv.costs.shape import Shape
from ragkv.fusion.prefill import Prefill, fused_prefill
from ragkv.fusion.workspace import Workspace
from ragkv.loading.memory import InMemory
from ragkv.loading.segments import Segments
from ragkv.prompt import Prompt
from ragkv.selectors import Selector, get_selector
from ragkv.store import KVStore

METHODS: tuple[tuple[str, dict], ...] = (
    ("full_reuse", {}),
    ("probe", {"ratio": 0.02, "hops": 1}),
    ("probe", {"ratio": 0.02, "hops": 2}),
    ("probe", {"ratio": 0.02}),
    ("probe", {"ratio": 0.05, "hops": 1}),
    ("probe", {"ratio": 0.05}),
    ("a3", {"ratio": 0.15}),
)
STAGES = ("open", "load", "select")


def prefill_rows(
    model: PreTrainedModel,
    tokens: int,
    tiers: Sequence[str],
    store: KVStore,
    *,
    chunk_tokens: int,
    repeats: int,
    limits: dict[str, float],
) -> pd.DataFrame:
    """TTFT of full prefills and of fused ones, by where keys and values come from.

    Parameters
    ----------
    tiers
        Some of `ragkv.bench.tiers.TIERS`.
    store
        On a local disk, for the tiers of files.
    limits
        As `ceilings` gives them.

    Returns
    -------
    DataFrame
        ``tokens, tier, selector, ratio, hops``; ``p20, p50, p80`` in milliseconds; ``speed-up`` of the faster full
        prefill over it; the median milliseconds of the stages ``open, load, select`` and of the rest, ``compute``;
        ``flop`` and ``bytes`` that it needs at least (`ragkv.costs`), ``limit``, the milliseconds that these take
        at the machine's speed, or loading if that takes longer, and ``reached``, limit over p50. From the host also
        ``loading``: milliseconds of bringing all layers to the GPU alone; ``overlap``: the share of that, or of the
        prefill from the GPU if it is less, that is hidden behind the other; and what `ragkv.costs.balance` says:
        ``bound``, and the ``turning`` ratio.
    """
    prompt, shape = random_prompt(model.config.vocab_size, tokens, chunk_tokens), Shape.of_config(model.config)
    workspace, memory, table = Workspace(model, tokens + 64), InMemory.computed(model, prompt), []
    if {"page cache", "disk"} & set(tiers):
        memory.into(store, model)
    selectors = [get_selector(name, **options) for name, options in METHODS]
    one_gpu, on_gpu = len(set(workspace.memory.devices)) == 1, [None] * len(selectors)
    full = _timed({"full_prefill": partial(_prefill, model, prompt, None, get_selector("full_prefill"))}, repeats)
    if one_gpu:  # transformers runs over several only with hooks of its own
        full |= _timed({"transformers": partial(_plain, model, prompt)}, repeats)
    best = min(times["p50"] for times in full.values())
    needed = shape.prefill(tokens, tokens, shape.layers), moved(shape, get_selector("full_prefill"), tokens)
    for name, times in full.items():
        row = {"tokens": tokens, "tier": "", "selector": name, "ratio": 1.0, "hops": None, **times}
        table.append(row | _roofline(row, *needed, 0.0, best, limits))
    for where in tiers:
        segments, before = tier(where, memory, store, model)
        runs = {str(i): partial(_prefill, model, prompt, segments, s, workspace) for i, s in enumerate(selectors)}
        timed = _timed(runs, repeats if where != "disk" else max(3, repeats // 4), before)
        if where == "cuda":
            on_gpu = [times["p50"] for times in timed.values()]
        from_host = where != "cuda" and one_gpu and model.device.type == "cuda"
        loading = _loading(prompt, segments, workspace, before) if from_host else None
        for (name, _), selector, times, computing in zip(METHODS, selectors, timed.values(), on_gpu, strict=True):
            row = {"tokens": tokens, "tier": where, "selector": name, "ratio": selector.ratio}
            row |= {"hops": getattr(selector, "hops", None), **times}
            needed = fused(shape, selector, tokens), moved(shape, selector, tokens)
            row |= _roofline(row, *needed, loading or 0.0, best, limits)
            if loading is not None:
                speed = tokens * shape.bytes_per_token(2) / loading / 1e6
                weighed = balance(shape, selector, tokens, tflops=limits["tflops"], gbs=speed)
                row |= {"loading": loading, "bound": weighed.bound, "turning": weighed.turning}
                if computing is not None:
                    row["overlap"] = (loading + computing - row["p50"]) / min(loading, computing)
            table.append(row)
    return pd.DataFrame(table)


def _prefill(
    model: PreTrainedModel, prompt: Prompt, store: Segments | None, selector: Selector, room: Workspace | None = None
) -> Prefill:
    prefill = fused_prefill(model, prompt, store, selector, workspace=room)
    int(prefill.logits.argmax())
    return prefill


@torch.inference_mode()
def _plain(model: PreTrainedModel, prompt: Prompt) -> None:
    """transformers' own prefill."""
    int(model(torch.tensor([prompt.ids]).to(model.device), logits_to_keep=1).logits[0, -1].argmax())


def _timed(runs: Mapping[str, Callable[[], object]], repeats: int, before: Callable[[], object] = nothing) -> dict:
    """Milliseconds by run: ``p20, p50, p80``, and the medians of its stages where it is a fused prefill."""
    stages: dict[str, list[dict]] = {name: [] for name in runs}

    def noted(name: str) -> None:
        if isinstance(prefill := runs[name](), Prefill):
            stages[name].append(prefill.timings)

    times = measure({name: partial(noted, name) for name in runs}, repeats, before)
    found = {}
    for name, row in times[["p20", "p50", "p80"]].iterrows():
        found[name] = dict(row)
        if stages[name]:
            part = pd.DataFrame(stages[name][1:]).reindex(columns=["total", *STAGES]).fillna(0.0).median() * 1e3
            found[name] |= {stage: part[stage] for stage in STAGES}
            found[name]["compute"] = part["total"] - part[list(STAGES)].sum()
    return found


def _roofline(row: dict, flop: float, size: float, loading: float, best: float, limits: dict[str, float]) -> dict:
    limit = max(flop / limits["tflops"] / 1e9, size / limits["memory_gbs"] / 1e6, loading)
    reached = {"flop": flop, "bytes": size, "limit": limit, "reached": limit / row["p50"]}
    return {"speed-up": best / row["p50"], **reached}


def _loading(prompt: Prompt, segments: Segments, workspace: Workspace, before: Callable[[], object]) -> float:
    """Milliseconds of bringing all layers to the GPU, and nothing else: the median of three."""
    return measure({"": partial(bring, prompt, segments, workspace)}, 3, before)["p50"].iloc[0]
