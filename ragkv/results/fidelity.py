"""How close a method stays to full prefill: distances between next-token distributions, and what they add up to.

A score counts right answers, so it needs many prompts that the model can answer. The distance between two
distributions is defined for every prompt, and says more with fewer of them.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from torch import Tensor

from ragkv.results.comparison import GROUP, RESAMPLES, interval

FIDELITY = ("kl_first", "kl", "agreement_first", "agreement", "nll")  # columns of `fidelity`
LOWER_IS_BETTER = ("kl", "kl_first", "nll")
RECOVERED = ("kl", "score")  # columns whose gap between plain reuse and full prefill is told of
_ROUNDING = 1e-12  # smaller gaps between means are none


def kl_divergence(full: Tensor, method: Tensor) -> Tensor:
    """KL(full || method) of each token's distribution, in nats.

    Parameters
    ----------
    full, method
        Logits, ``(tokens, vocab)``.

    Returns
    -------
    Tensor
        ``(tokens,)``, float64.
    """
    expected, found = full.double().log_softmax(-1), method.double().log_softmax(-1)
    return (expected.exp() * (expected - found)).sum(-1).clamp(min=0)  # rounding may leave -1e-17


def agreement(full: Tensor, method: Tensor) -> Tensor:
    """Whether both put the same token first: ``(tokens,)`` from logits ``(tokens, vocab)``."""
    return full.argmax(-1) == method.argmax(-1)


def negative_log_likelihood(logits: Tensor, ids: Tensor) -> Tensor:
    """How surprising each token of an answer is, in nats.

    Parameters
    ----------
    logits
        ``(tokens, vocab)``; each row predicts the token of the same row.
    ids
        ``(tokens,)``.

    Returns
    -------
    Tensor
        ``(tokens,)``, float64.
    """
    return -logits.double().log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def fidelity(full: Tensor, method: Tensor, ids: Tensor) -> dict[str, float]:
    """A method against full prefill along one answer: the columns of its row in the results.

    Parameters
    ----------
    full, method
        Logits along the answer, ``(tokens, vocab)``, as `ragkv.experiment.fidelity.forced_logits` gives them.
    ids
        The answer, ``(tokens,)``.

    Returns
    -------
    dict
        ``kl_first, kl``: at the first token, and the mean over the answer; ``agreement_first, agreement``: the same for
        whether both would choose the same token; ``nll``: the answer's mean negative log-likelihood per token.
    """
    distances, same = kl_divergence(full, method), agreement(full, method).double()
    return {
        "kl_first": float(distances[0]),
        "kl": float(distances.mean()),
        "agreement_first": float(same[0]),
        "agreement": float(same.mean()),
        "nll": float(negative_log_likelihood(method, ids).mean()),
    }


def recovered(
    rows: pd.DataFrame, column: str = "score", *, full: str = "full_prefill", reuse: str = "full_reuse", seed: int = 0
) -> pd.DataFrame:
    """The share of the gap between plain reuse and full prefill that each method closes.

    It is ``(method - reuse) / (full - reuse)`` of means over the prompts, since many single prompts have no gap. Where
    full prefill is not better than plain reuse there is nothing to recover, and the share is NaN. Where that is so in
    more than 2.5 % of the resamples, there are too few prompts to bound the share, and its interval is NaN.

    Parameters
    ----------
    rows
        Results with ``prompt, method, ratio`` and `column`; prompts that some method has not answered are left out.
    column
        ``score``, or a column of `fidelity`; smaller values of ``kl``, ``kl_first`` and ``nll`` are better.

    Returns
    -------
    DataFrame
        ``method, ratio, recovered, low, high``: 0 is as good as plain reuse, 1 as good as full prefill. Intervals
        (95 %) are percentiles of 2,000 resamples of the prompts, the same ones for all methods.

    Raises
    ------
    ValueError
        `full` or `reuse` did not run, or no prompt was answered by every method.
    """
    table = rows.pivot_table(index="prompt", columns=GROUP, values=column, sort=False).dropna()
    for name in (full, reuse):
        if name not in table.columns.get_level_values("method"):
            raise ValueError(f"the share that is recovered needs results of {name}: add it to the methods")
    if table.empty:
        raise ValueError("no prompt was answered by every method: finish the evaluation first")
    order = [tuple(key) for key in rows[GROUP].drop_duplicates().to_numpy() if tuple(key) in table.columns]
    values = table[order].to_numpy()  # (prompts, methods)
    column_of = {name: [method for method, _ in order].index(name) for name in (full, reuse)}
    sign = -1.0 if column in LOWER_IS_BETTER else 1.0
    # The same resamples as in `interval`, counted: scipy.stats.bootstrap would copy all values for each of them, and
    # gives no interval if a single resample has no gap.
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    counts = np.apply_along_axis(np.bincount, 1, drawn, minlength=len(values))  # (resamples, prompts)

    def shares(means: np.ndarray) -> np.ndarray:
        """Of means ``(..., methods)``; NaN without a gap."""
        means = sign * means
        lost = means[..., [column_of[reuse]]]
        gap = means[..., [column_of[full]]] - lost
        return (means - lost) / np.where(gap > _ROUNDING, gap, np.nan)

    share = shares(values.mean(axis=0))
    resampled = shares(counts @ values / len(values))
    low, high = np.full((2, len(order)), np.nan)
    if np.isnan(resampled[:, 0]).mean() <= 0.025:
        low, high = np.nanpercentile(resampled, [2.5, 97.5], axis=0)
    result = pd.DataFrame(order, columns=GROUP)
    return result.assign(recovered=share, low=low, high=high)


def fidelity_by_method(rows: pd.DataFrame, by: list[str] | None = None) -> pd.DataFrame:
    """How close each method and ratio stays to full prefill, in the order of the results.

    Parameters
    ----------
    rows
        Results as `ragkv.experiment.evaluate` gives them. Without a full prefill they have no columns of `fidelity`,
        and without plain reuse there is no gap; what needs them is left out.
    by
        Labels (``["length"]``) by which to group the results first.

    Returns
    -------
    DataFrame
        ``share`` (mean, of the document that was recomputed), then for ``kl_first, kl, agreement_first, agreement,
        nll`` the mean over the prompts and its 95 % interval, as ``kl, kl_low, kl_high``, and for the share of the gap
        that is `recovered` the same, as ``recovered_kl, recovered_kl_low, recovered_kl_high`` and
        ``recovered_score, ...``. All intervals are percentiles of the same 2,000 resamples of the prompts.
    """
    measured = [name for name in FIDELITY if name in rows]
    tables = []
    for labels, part in rows.groupby(by, sort=True) if by else [((), rows)]:
        lines = []
        for key, group in part.groupby(GROUP, sort=False):
            line: dict[str, object] = dict(zip([*(by or []), *GROUP], (*labels, *key), strict=True))
            if "share" in group:
                line["share"] = group["share"].mean()
            for name in measured:
                line |= interval(group[name].to_numpy(), name)
            lines.append(line)
        table = pd.DataFrame(lines)
        if _has_gap(part):
            for column in RECOVERED:
                if column in part:
                    table = table.merge(_named(recovered(part, column), f"recovered_{column}"), on=GROUP, how="left")
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def pooled(results: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of several tasks (by name) as one table, at the methods and ratios that all of them were run with."""
    named = {task: rows.assign(prompt=task + "/" + rows["prompt"].astype(str)) for task, rows in results.items()}
    rows = pd.concat(named.values(), ignore_index=True)
    tasks = pd.concat([rows[GROUP].drop_duplicates() for rows in named.values()]).value_counts()
    everywhere = tasks.index[tasks == len(named)]
    return rows[pd.MultiIndex.from_frame(rows[GROUP]).isin(everywhere)].reset_index(drop=True)


def _has_gap(rows: pd.DataFrame) -> bool:
    """Whether both ends of the gap were run, on a prompt that every method has answered."""
    answered = rows.pivot_table(index="prompt", columns=GROUP, values="score", sort=False).dropna()
    return {"full_prefill", "full_reuse"} <= set(rows["method"]) and not answered.empty


def _named(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table.rename(columns={"recovered": name, "low": f"{name}_low", "high": f"{name}_high"})
