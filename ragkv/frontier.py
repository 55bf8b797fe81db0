"""How much accuracy a method has for what it costs, and how near its choice is to one that knows what is wrong."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ragkv.comparison import GROUP, interval, summarise
from ragkv.experiment import Experiment
from ragkv.fusion import fused_prefill
from ragkv.inspection import attention_by_layer
from ragkv.prompt import Prompt
from ragkv.selectors import get_selector
from ragkv.store import KVStore

AREA = ["method", "area", "low", "high"]
OVERLAP = [*GROUP, "change", "effect", "evidence"]


def costs(rows: pd.DataFrame) -> pd.DataFrame:
    """`ragkv.comparison.summarise`, with the mean ``share`` that was recomputed, and bytes in store and cache."""
    means = rows.groupby(GROUP, sort=False)[["share", "stored_bytes", "cache_tokens", "cache_bytes"]].mean()
    return summarise(rows).merge(means.reset_index(), on=GROUP, sort=False)


def areas(rows: pd.DataFrame, start: str = "full_reuse") -> pd.DataFrame:
    """The area under each method's accuracy over the ratio, from plain reuse at 0 on, over the largest ratio of all.

    Between two ratios a line is drawn; a method's last accuracy stays. So the area is a mean accuracy, from 0 to 1.

    Returns
    -------
    DataFrame
        ``method, area, low, high`` (95 %, by resampling prompts), best first; methods that ran at several ratios.
        Empty where `start` did not run.
    """
    scores = rows.pivot_table(index="prompt", columns=GROUP, values="score", sort=False)
    if start not in scores:
        return pd.DataFrame(columns=AREA)
    reuse = scores[start].iloc[:, 0]
    curves = {method: scores[method].sort_index(axis=1) for method in scores.columns.unique(0) if method != start}
    curves = {method: curve for method, curve in curves.items() if curve.shape[1] > 1}
    widest = max((max(curve.columns) for curve in curves.values()), default=1.0)
    table = []
    for method, curve in curves.items():
        ratios = [0.0, *curve.columns, widest]
        heights = np.column_stack([reuse, curve, curve.iloc[:, -1]])  # (prompts, ratios)
        found = interval(np.trapezoid(heights, ratios, axis=1) / widest, "area")
        table.append({"method": method, "area": found["area"], "low": found["area_low"], "high": found["area_high"]})
    return pd.DataFrame(table, columns=AREA).sort_values("area", ascending=False, kind="stable", ignore_index=True)


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


def failures(rows: pd.DataFrame, method: str, ratio: float, baseline: str = "full_prefill") -> list[str]:
    """The prompts that the baseline answers better than a method at a ratio; none where the baseline did not run."""
    scores = rows.pivot_table(index="prompt", columns=GROUP, values="score", sort=False)
    if baseline not in scores:
        return []
    return scores.index[scores[baseline].iloc[:, 0] > scores[method, ratio]].tolist()
