"""How close a method's choice of tokens comes to that of an oracle, which knows what is wrong with reused K/V."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ragkv.experiment.experiment import Experiment
from ragkv.experiment.inspection import attention_by_layer
from ragkv.fusion.prefill import fused_prefill
from ragkv.loading.segments import Segments
from ragkv.prompt import Prompt
from ragkv.results.comparison import GROUP
from ragkv.results.files import write_json
from ragkv.selectors import get_selector

ORACLES = ("change", "effect")
OVERLAP = [*GROUP, *ORACLES, "evidence"]


def deviations(model: PreTrainedModel, prompt: Prompt, store: Segments) -> tuple[Tensor, Tensor]:
    """How far each document token's stored keys and values are from those of a full prefill.

    Returns
    -------
    change
        ``(document,)``: squared differences of keys and values, summed over layers, heads and dimensions.
    effect
        ``(document,)``: the values' difference, times how much the question attends to the token, summed over layers.
    """
    full = fused_prefill(model, prompt, store, get_selector("full_prefill")).cache
    reused = fused_prefill(model, prompt, store, get_selector("full_reuse")).cache
    attention = attention_by_layer(model, prompt, store)  # (layers, document)
    span = prompt.document_span

    def difference(right: Tensor, wrong: Tensor) -> Tensor:
        """Per document token, of ``(batch, kv_heads, tokens, head_dim)``."""
        gap = right[0, :, span.start : span.stop] - wrong[0, :, span.start : span.stop]
        return gap.float().square().sum((0, 2)).cpu()

    change = torch.zeros(len(span))
    effect = torch.zeros(len(span))
    for weights, right, wrong in zip(attention, full.layers, reused.layers, strict=True):
        keys = difference(right.keys, wrong.keys)
        values = difference(right.values, wrong.values)
        change = change + keys + values
        effect = effect + weights * values.sqrt()
    return change, effect


def oracle_overlap(
    experiment: Experiment, benchmark: str, task: str, model: PreTrainedModel, prompts: int
) -> pd.DataFrame:
    """The share of a method's tokens that an oracle would also take, given as many, over the first `prompts` prompts.

    Returns
    -------
    DataFrame
        ``method, ratio``, and the mean share for two oracles: ``change`` takes the tokens whose keys and values are
        most wrong, ``effect`` those whose wrong values the question attends to most. ``evidence`` is the share of the
        evidence that was recomputed. Methods that recompute nothing or everything are left out.
    """
    rows = experiment.rows(benchmark, task)
    table = []
    for item in experiment.items(benchmark, task)[:prompts]:
        span = item.prompt.document_span
        oracles = dict(zip(ORACLES, deviations(model, item.prompt, experiment.read_ahead(model)), strict=True))
        for row in rows[rows["prompt"] == item.id].itertuples():
            chosen = {int(position) - span.start for position in row.recomputed if position in span}
            if not 0 < len(chosen) < len(span):
                continue
            line = {"method": row.method, "ratio": row.ratio}
            for name, scores in oracles.items():
                best = set(scores.topk(len(chosen)).indices.tolist())
                line[name] = len(chosen & best) / len(chosen)
            line["evidence"] = _covered(chosen, item.evidence)
            table.append(line)
    return pd.DataFrame(table, columns=OVERLAP).groupby(GROUP, sort=False).mean().reset_index()


def write_oracle(
    experiment: Experiment, benchmark: str, task: str, model: PreTrainedModel, prompts: int
) -> pd.DataFrame:
    """`oracle_overlap`, also written to the experiment's outputs."""
    overlap = oracle_overlap(experiment, benchmark, task, model, prompts)
    content = {
        "benchmark": benchmark,
        "task": task,
        "identity": experiment.rows(benchmark, task).attrs.get("identity"),
        "prompts": prompts,
        "overlap": overlap.to_dict("records"),
    }
    write_json(experiment.outputs.oracle, content, checked=True)
    return overlap


def _covered(chosen: set[int], evidence: Sequence[int]) -> float:
    """The share of the evidence among the chosen tokens; NaN without evidence."""
    return len(chosen & set(evidence)) / len(evidence) if evidence else np.nan
