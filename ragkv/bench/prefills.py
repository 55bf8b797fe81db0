"""TTFT by selector and by where keys and values come from, on models with random weights: latency only.

Used by ``python -m ragkv.bench --shape``. Times run from token ids on the host to the first new id on the host.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import pandas as pd
import torch
from transformers import PreTrainedModel

from ragkv.bench.parts import bring
from ragkv.bench.random_models import random_prompt
from ragkv.bench.tiers import needs_files, tier
from ragkv.bench.timing import measure, nothing
from ragkv.costs.prefill import BF16_BYTES, bytes_moved, operations
from ragkv.costs.roofline import FULL, Machine
from ragkv.costs.shape import Shape
from ragkv.fusion.prefill import Prefill, fused_prefill
from ragkv.fusion.workspace import Workspace
from ragkv.loading.memory import InMemory
from ragkv.loading.segments import Segments
from ragkv.prompt import Prompt
from ragkv.selectors import Selector, get_selector
from ragkv.store import KVStore

STAGES = ("open", "load", "select")
SELECTORS = ("full_reuse", "probe", "a3", "cacheblend", "epic")
RATIOS = (0.02, 0.05, 0.15, 0.3)  # at which fidelity was measured, too: outputs/reference/smollm2-gpu
Method = tuple[str, dict]  # a selector's name and its options


def methods(layers: int, selectors: Collection[str] = SELECTORS, ratios: Collection[float] = RATIOS) -> list[Method]:
    """These selectors at these ratios, with the options they are measured with, for a model with so many layers.

    `a3` on stored keys chooses in the layer that was best for SmolLM2, at the same depth, and once in an early one.
    """
    stored = {"keys": "stored"}
    at_ratios: list[Method] = [
        ("probe", {"hops": 1}),
        ("a3", stored | {"layer": 22 * layers // 30}),
        ("a3", {}),
        ("cacheblend", {}),
        ("epic", {}),
    ]
    at_one_ratio: list[Method] = [
        ("a3", stored | {"ratio": 0.02, "layer": layers // 4}),
        ("probe", {"ratio": 0.02, "hops": 2}),
        ("probe", {"ratio": 0.02}),
        ("probe", {"ratio": 0.05}),
    ]
    every = [
        ("full_reuse", {}),
        *[(name, {"ratio": ratio} | options) for name, options in at_ratios for ratio in ratios],
        *[(name, options) for name, options in at_one_ratio if options["ratio"] in ratios],
    ]
    return [(name, options) for name, options in every if name in selectors]


def prefill_rows(
    model: PreTrainedModel,
    tokens: int,
    measured: Sequence[Method],
    tiers: Sequence[str],
    store: KVStore,
    *,
    chunk_tokens: int,
    repeats: int,
    machine: Machine,
) -> pd.DataFrame:
    """TTFT of full prefills, and of fused ones by where keys and values come from.

    Parameters
    ----------
    measured
        The fused prefills' selectors, from `methods`.
    tiers
        Some of `ragkv.bench.tiers.TIERS`.
    store
        On a local disk, for tiers of which `needs_files` is true.
    machine
        With the speeds that `ragkv.bench.parts.ceilings` measured.

    Returns
    -------
    DataFrame
        A row per prefill: full prefills first (tier ``""``), then every method from every tier.

        ``tokens, tier, selector, ratio, hops, keys, layer`` (the last two only of `a3` on stored keys);
        ``p20, p50, p80`` in milliseconds, and ``speed-up`` over the faster full prefill, by medians;
        ``open, load, select`` and, for the rest, ``compute``: medians of the stages in milliseconds;
        ``flop`` and ``bytes``: what the prefill needs at least (`ragkv.costs.prefill`);
        ``limit``: the milliseconds that no prefill can beat (`Machine.limit`), and ``reached``: limit over p50.

        Only if keys and values come from the host:
        ``loading``: milliseconds to copy all layers to the GPU and do nothing else;
        ``bound`` and ``turning``: what `Machine.balance` says at that speed of loading;
        ``overlap``: the share of loading, or of the same prefill from the GPU if that is shorter, that is hidden behind
        the other.
    """
    shape = Shape.of_config(model.config)
    prompt = random_prompt(model.config.vocab_size, tokens, chunk_tokens)
    workspace, memory = Workspace(model, tokens + 64), InMemory.computed(model, prompt)
    if any(needs_files(name, store.format) for name in tiers):
        memory.into(store, model)
    one_gpu = len(set(workspace.memory.devices)) == 1

    full = _timed({"full_prefill": partial(_prefill, model, prompt, None, FULL)}, repeats)
    if one_gpu:  # transformers runs over several GPUs only with hooks of its own
        full |= _timed({"transformers": partial(_plain, model, prompt)}, repeats)
    fastest = min(times["p50"] for times in full.values())
    table = []
    for name, times in full.items():
        row = {
            "tokens": tokens,
            "tier": "",
            "selector": name,
            "ratio": 1.0,
            "hops": None,
            "keys": None,
            "layer": None,
            **times,
        }
        table.append(row | _compared(times["p50"], fastest, machine, shape, FULL, tokens))

    selectors = [get_selector(name, **options) for name, options in measured]
    from_gpu: list[float | None] = [None] * len(selectors)  # medians, once they are known
    for place in tiers:
        segments, before = tier(place, memory, store, model)
        runs = {str(i): partial(_prefill, model, prompt, segments, s, workspace) for i, s in enumerate(selectors)}
        timed = _timed(runs, max(3, repeats // 4) if place == "disk" else repeats, before)
        if place == "cuda":
            from_gpu = [times["p50"] for times in timed.values()]
        loading = None
        if place != "cuda" and one_gpu and model.device.type == "cuda":
            loading = _loading(prompt, segments, workspace, before)
        for (name, options), selector, times, computing in zip(
            measured, selectors, timed.values(), from_gpu, strict=True
        ):
            row = {"tokens": tokens, "tier": place, "selector": name, "ratio": selector.ratio}
            row |= {
                "hops": selector.passes or None,
                "keys": options.get("keys"),
                "layer": options.get("layer"),
                **times,
            }
            row |= _compared(times["p50"], fastest, machine, shape, selector, tokens, loading or 0.0)
            if loading is not None:
                gbs = tokens * shape.bytes_per_token(BF16_BYTES) / loading / 1e6
                balance = machine.balance(shape, selector, tokens, gbs)
                row |= {"loading": loading, "bound": balance.bound, "turning": balance.turning}
                if computing is not None:
                    hidden = loading + computing - times["p50"]
                    row["overlap"] = hidden / min(loading, computing)
            table.append(row)
    return pd.DataFrame(table)


def _prefill(
    model: PreTrainedModel,
    prompt: Prompt,
    store: Segments | None,
    selector: Selector,
    workspace: Workspace | None = None,
) -> Prefill:
    """A fused prefill up to the next id on the host."""
    prefill = fused_prefill(model, prompt, store, selector, workspace=workspace)
    int(prefill.logits.argmax())
    return prefill


@torch.inference_mode()
def _plain(model: PreTrainedModel, prompt: Prompt) -> None:
    """A prefill by transformers alone."""
    int(model(torch.tensor([prompt.ids]).to(model.device), logits_to_keep=1).logits[0, -1].argmax())


def _timed(runs: Mapping[str, Callable[[], object]], repeats: int, before: Callable[[], object] = nothing) -> dict:
    """``p20, p50, p80`` of each run in milliseconds, and the medians of its stages if it is a fused prefill."""
    timings: dict[str, list[dict]] = {name: [] for name in runs}

    def run_and_note(name: str) -> None:
        if isinstance(prefill := runs[name](), Prefill):
            timings[name].append(prefill.timings)

    times = measure({name: partial(run_and_note, name) for name in runs}, repeats, before)
    result = {}
    for name, row in times[["p20", "p50", "p80"]].iterrows():
        result[name] = dict(row)
        if timings[name]:
            timed = pd.DataFrame(timings[name][1:])  # the first call was not timed
            medians = timed.reindex(columns=["total", *STAGES]).fillna(0.0).median() * 1e3
            result[name] |= {stage: medians[stage] for stage in STAGES}
            result[name]["compute"] = medians["total"] - medians[list(STAGES)].sum()
    return result


def _compared(
    p50: float,
    fastest: float,
    machine: Machine,
    shape: Shape,
    selector: Selector,
    tokens: int,
    loading: float = 0.0,
) -> dict:
    """A median in milliseconds beside the fastest full prefill's, and beside what the machine can do."""
    limit = machine.limit(shape, selector, tokens, loading / 1e3) * 1e3
    return {
        "speed-up": fastest / p50,
        "flop": operations(shape, selector, tokens),
        "bytes": bytes_moved(shape, selector, tokens),
        "limit": limit,
        "reached": limit / p50,
    }


def _loading(prompt: Prompt, segments: Segments, workspace: Workspace, before: Callable[[], object]) -> float:
    """Milliseconds to copy all layers to the GPU and do nothing else: the median of three."""
    return measure({"": partial(bring, prompt, segments, workspace)}, 3, before)["p50"].iloc[0]
