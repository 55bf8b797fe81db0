"""How close a method stays to full prefill: distances between next-token distributions, and what they add up to.

A score counts right answers, so it needs many prompts that the model can answer. The distance between two
distributions is defined for every prompt, and says more with fewer of them.
"""

from statistics import NormalDist

import numpy as np
import pandas as pd
from torch import Tensor

from ragkv.results.comparison import GROUP, RESAMPLES

_ROUNDING = 1e-12  # smaller gaps between means are none
LOWER_IS_BETTER = ("kl", "kl_first", "nll")


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


def wilson(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a share of right answers (E. B. Wilson, JASA 22, 1927).

    It holds for few prompts and for shares of 0 and 1 too, where a bootstrap interval has no width.

    Raises
    ------
    ValueError
        `right` is not between 0 and `total`, or there are no answers.
    """
    if not 0 <= right <= total or total == 0:
        raise ValueError(f"{right} right answers of {total}: give a number of answers, and how many of these are right")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = right / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * (share * (1 - share) / total + weight / (4 * total)) ** 0.5
    return (middle - half if right else 0.0), (middle + half if right < total else 1.0)  # exact at both ends
