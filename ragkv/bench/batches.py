"""Prompts per second where several prompts are prefilled together, against one at a time.

Used by ``python -m ragkv.bench --shape --batches``. Everything runs in workspaces, and keys and values start on the
model's device.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import pandas as pd
import torch
from transformers import PreTrainedModel

from ragkv.bench.prefills import Method
from ragkv.bench.random_models import QUESTION, random_prompt
from ragkv.bench.timing import measure
from ragkv.costs.prefill import kv_bytes, operations, weight_bytes
from ragkv.costs.roofline import Machine
from ragkv.costs.shape import Shape
from ragkv.fusion.prefill import fused_prefills
from ragkv.fusion.workspace import Workspace
from ragkv.loading.memory import InMemory
from ragkv.prompt import Prompt
from ragkv.selectors import Selector, get_selector

MOST = 0.05  # share of tokens; with more of them, reading the weights matters little


def batched(measured: Iterable[Method]) -> list[Method]:
    """Those of the measured methods that choose few tokens before the first layer, in at most one pass of their own."""

    def suits(selector: Selector) -> bool:
        return 0 < selector.ratio <= MOST and not selector.observes and selector.passes <= 1

    return [(name, options) for name, options in measured if suits(get_selector(name, **options))]


def batch_rows(
    model: PreTrainedModel,
    tokens: int,
    sizes: Iterable[int],
    measured: Iterable[Method],
    *,
    chunk_tokens: int,
    repeats: int,
    machine: Machine,
) -> pd.DataFrame:
    """Fused prefills of several prompts at once, timed in turns with those of one prompt.

    Parameters
    ----------
    tokens
        Of each prompt.
    sizes
        How many prompts are prefilled together. One at a time is always measured, too.
    measured
        From `ragkv.bench.prefills.methods`; only those that are `batched` are measured.
    machine
        With the speeds that `ragkv.bench.parts.ceilings` measured.

    Returns
    -------
    DataFrame
        A row per selector and size: ``tokens, selector, ratio, hops, keys, layer``; ``prompts``: how many at once;
        ``p20, p50, p80`` in milliseconds for all of them, from their ids on the host to their first new ids there;
        ``prompts_per_second``, by the median, and ``speed-up``: how many times that of one at a time; ``limit``: the
        milliseconds that all of them need at least for their operations, or for reading the weights and moving keys and
        values; ``reached``: limit over p50.
    """
    shape = Shape.of_config(model.config)
    counts = sorted({1, *sizes})
    vocabulary = model.config.vocab_size
    prompts = [random_prompt(vocabulary, tokens, chunk_tokens, seed=number) for number in range(counts[-1])]
    store = InMemory({}, str(model.device))
    for prompt in prompts:
        store.segments |= InMemory.computed(model, prompt).to(str(model.device)).segments
    workspaces = {count: Workspace(model, count * tokens) for count in counts}

    table = []
    for name, options in batched(measured):
        selector = get_selector(name, **options)
        runs: dict[str, Callable[[], object]] = {
            str(count): partial(_prefill, model, prompts[:count], store, selector, workspaces[count])
            for count in counts
        }
        times = measure(runs, repeats)[["p20", "p50", "p80"]]
        one_at_a_time = 1e3 / times["p50"].iloc[0]
        for count, (_, row) in zip(counts, times.iterrows(), strict=True):
            per_second = 1e3 * count / row["p50"]
            limit = 1e3 * _limit(machine, shape, selector, tokens, count)
            described = {"tokens": tokens, "selector": name, "ratio": selector.ratio, "hops": selector.passes or None}
            described |= {"keys": options.get("keys"), "layer": options.get("layer"), "prompts": count}
            speed = {"prompts_per_second": per_second, "speed-up": per_second / one_at_a_time}
            table.append(described | dict(row) | speed | {"limit": limit, "reached": limit / row["p50"]})
    return pd.DataFrame(table)


def _prefill(
    model: PreTrainedModel, prompts: Sequence[Prompt], store: InMemory, selector: Selector, workspace: Workspace
) -> list[int]:
    """Fused prefills up to the next ids on the host."""
    prefills = fused_prefills(model, prompts, store, selector, workspace=workspace)
    return torch.cat([prefill.logits for prefill in prefills]).argmax(-1).tolist()


def _limit(machine: Machine, shape: Shape, selector: Selector, tokens: int, count: int) -> float:
    """Seconds that no batch of so many prompts can beat, whose weights are read once for all of them."""
    computing = machine.computing(count * operations(shape, selector, tokens, QUESTION))
    moved = weight_bytes(shape, selector) + count * kv_bytes(shape, selector, tokens)
    return max(computing, machine.moving(moved))
