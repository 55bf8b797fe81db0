"""How much accuracy a method has for what it costs, and how near its choice is to one that knows what is wrong."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ragkv.experiment.experiment import Experiment
from ragkv.experiment.inspection import attention_by_layer
from ragkv.fusion.prefill import fused_prefill
from ragkv.prompt import Prompt
from ragkv.results.comparison import GROUP
from ragkv.selectors import get_selector
from ragkv.store import KVStore

OVERLAP = [*GROUP, "change", "effect", "evidence"]


def deviations(model: PreTrainedModel, prompt: Prompt, store: KVStore) -> tuple[Tensor, Tensor]:
    """How far each document token's stored keys and values are from a full prefill's.

    Returns
    -------
    change
        ``(document,)``: squared differences of keys and values, summed over layers, heads and dimensions.
    effect
        ``(document,)``: the values' difference, times how much the question attends to the token, summed over layers.
    """
    full, reused = (fused_prefill(model, prompt, store, get_selector(n)).cache for n in ("full_prefill", "full_reuse"))
    attention, span = attention_by_layer(model, prompt, store), prompt.document_span  # (layers, document)
    change = effect = torch.zeros(len(span))
    for weights, right, wrong in zip(attention, full.layers, reused.layers, strict=True):
        keys, values = (
            (a[0, :, span.start : span.stop] - b[0, :, span.start : span.stop]).float().square().sum((0, 2)).cpu()
            for a, b in ((right.keys, wrong.keys), (right.values, wrong.values))
        )
        change, effect = change + keys + values, effect + weights * values.sqrt()
    return change, effect


def oracle_overlap(
    experiment: Experiment, benchmark: str, task: str, model: PreTrainedModel, prompts: int
) -> pd.DataFrame:
    """Which share of a method's tokens are among as many that an oracle would take, over the first `prompts` prompts.

    Returns
    -------
    DataFrame
        ``method, ratio``, and the mean share by two oracles: ``change``, the tokens whose keys and values are most
        wrong, and ``effect``, those whose wrong values the question attends to most; ``evidence``: the share of the
        evidence that was recomputed. Methods that recompute nothing or everything are not in it.
    """
    rows, table = experiment.rows(benchmark, task), []
    for item in experiment.items(benchmark, task)[:prompts]:
        span, oracles = item.prompt.document_span, deviations(model, item.prompt, experiment.store())
        for row in rows[rows["prompt"] == item.id].itertuples():
            chosen = {int(position) - span.start for position in row.recomputed if position in span}
            if not 0 < len(chosen) < len(span):
                continue
            best = [set(scores.topk(len(chosen)).indices.tolist()) for scores in oracles]
            shares = dict(zip(("change", "effect"), (len(chosen & b) / len(chosen) for b in best), strict=True))
            table.append({"method": row.method, "ratio": row.ratio} | shares | _found(chosen, item.evidence))
    return pd.DataFrame(table, columns=OVERLAP).groupby(GROUP, sort=False).mean().reset_index()


def _found(chosen: set[int], evidence: Sequence[int]) -> dict[str, float]:
    return {"evidence": len(chosen & set(evidence)) / len(evidence) if evidence else np.nan}
