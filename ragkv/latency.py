"""TTFT on a GPU, on the shapes of real models with random weights: latency only, nothing is said.

Called by ``python -m ragkv.bench --shape``. Times go from ids on the host to the first new id on the host.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

import pandas as pd
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from ragkv import flash
from ragkv.attention import BACKENDS
from ragkv.decoding import decode
from ragkv.fusion import fused_prefill
from ragkv.loading import SegmentInMemory, SegmentKV
from ragkv.planning import SHAPES, Shape, fused
from ragkv.precompute import compute_segment
from ragkv.prompt import Prompt, Segment, split_ids
from ragkv.selectors import Selector, get_selector
from ragkv.store import Layout
from ragkv.timing import measure
from ragkv.workspace import Workspace

FAMILY: dict[str, type[PretrainedConfig]] = {
    "llama-3-8b": LlamaConfig,
    "mistral-7b": MistralConfig,
    "qwen2.5-7b": Qwen2Config,
}
METHODS: tuple[tuple[str, dict], ...] = (
    ("full_reuse", {}),
    ("probe", {"ratio": 0.02, "hops": 1}),
    ("probe", {"ratio": 0.02}),
    ("probe", {"ratio": 0.05}),
    ("a3", {"ratio": 0.15}),
)
QUESTION, PREFIX = 64, 32


@dataclass(frozen=True)
class InMemory:
    """Segments that lie in one place: on the GPU, in pinned host memory, or in ordinary memory."""

    segments: dict[Segment, SegmentInMemory]
    url: str = "memory"
    format: str = "model"

    @classmethod
    def computed(cls, model: PreTrainedModel, prompt: Prompt) -> "InMemory":
        """A prompt's segments, computed now."""
        segments = prompt.segments(model.config.bos_token_id)
        return cls({segment: SegmentInMemory(*compute_segment(model, segment)) for segment in segments})

    def open(self, layout: Layout, segment: Segment) -> SegmentKV:
        return self.segments[segment]

    def other_model(self, layout: Layout) -> str | None:
        return None

    def to(self, where: str) -> "InMemory":
        return InMemory({segment: states.to(where) for segment, states in self.segments.items()}, where)


def random_model(name: str, positions: int, device: str = "cuda", layers: int | None = None) -> PreTrainedModel:
    """A model of that shape with random weights, in bfloat16.

    Raises
    ------
    ValueError
        No such shape.
    """
    if name not in FAMILY:
        raise ValueError(f"unknown shape {name!r}: choose one of {', '.join(FAMILY)}")
    shape = next(values for known, values in SHAPES.items() if name in known.lower())
    options = dict(shape) | ({"num_hidden_layers": layers} if layers else {})
    config = FAMILY[name](**options, max_position_embeddings=positions, sliding_window=None, bos_token_id=1)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.generation_config.eos_token_id = None  # random text has no end
    return model.eval().requires_grad_(False)


def random_prompt(
    vocabulary: int,
    tokens: int,
    chunk_tokens: int,
    *,
    prefix: int = PREFIX,
    question: int = QUESTION,
    bos: int | None = 1,
) -> Prompt:
    """A prompt of `tokens` random ids, behind `bos` if there is one: latency does not depend on what is said."""
    rng = Random(0)
    ids = [rng.randrange(3, vocabulary) for _ in range(tokens)]
    if bos is not None:
        ids[0] = bos
    return Prompt(ids[:prefix], split_ids(ids[prefix:-question], chunk_tokens), ids[-question:])


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


def prefill_rows(
    model: PreTrainedModel, tokens: int, tiers: list[str], *, chunk_tokens: int, repeats: int, tflops: float
) -> pd.DataFrame:
    """TTFT of full prefills and of fused ones, by where keys and values come from.

    Parameters
    ----------
    tiers
        ``"cuda"`` and ``"pinned"``.
    tflops
        The machine's speed in matrix products, for the share of it that is reached.

    Returns
    -------
    DataFrame
        ``tokens, tier, selector, ratio, hops``, ``p20, p50, p80`` in milliseconds, ``speed-up`` of the faster full
        prefill over it, and ``reached``: the operations that it needs (`ragkv.planning`), per second, over `tflops`.
    """
    prompt = random_prompt(model.config.vocab_size, tokens, chunk_tokens)
    device = model.device
    segments = InMemory.computed(model, prompt)
    workspace = Workspace(model, tokens + 64)

    @torch.inference_mode()
    def plain() -> int:
        ids = torch.tensor([prompt.ids]).to(device)
        return int(model(ids, logits_to_keep=1).logits[0, -1].argmax())

    def run(selector: Selector, store: InMemory | None) -> int:
        room = workspace if store is not None else None
        return int(fused_prefill(model, prompt, store, selector, workspace=room).logits.argmax())

    full = get_selector("full_prefill")
    keys: list[tuple[str, str, Selector]] = [("", "transformers", full), ("", "full_prefill", full)]
    runs: dict[str, Callable[[], object]] = {"0": plain, "1": partial(run, full, None)}
    for tier in tiers:
        store = segments.to(tier)
        for name, options in METHODS:
            selector = get_selector(name, **options)
            runs[str(len(keys))] = partial(run, selector, store)
            keys.append((tier, name, selector))
    times = measure(runs, repeats)
    shape, best = Shape.of_config(model.config), times["p50"].iloc[:2].min()
    table = []
    for (tier, name, selector), (_, row) in zip(keys, times.iterrows(), strict=True):
        needed = fused(shape, selector, tokens) if selector.reuses else shape.prefill(tokens, tokens, shape.layers)
        table.append(
            {"tokens": tokens, "tier": tier, "selector": name, "ratio": selector.ratio}
            | {"hops": getattr(selector, "hops", None)}
            | {q: row[q] for q in ("p20", "p50", "p80")}
            | {"speed-up": best / row["p50"], "reached": needed / row["p50"] / 1e9 / tflops}
        )
    return pd.DataFrame(table)


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
        if name.startswith("flashinfer") and flash.missing():
            continue
        run = partial(backend, query, key, value, positions, head_dim**-0.5)
        milliseconds = do_bench(run, return_mode="median")
        table.append({"tokens": tokens, "backend": name, "ms": milliseconds, "tflops": useful / milliseconds / 1e9})
    return pd.DataFrame(table)
