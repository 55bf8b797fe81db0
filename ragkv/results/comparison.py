"""Methods compared: mean scores with 95 % confidence intervals, and their differences prompt by prompt."""

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap

RESAMPLES = 2000
GROUP = ["method", "ratio"]
TIMES = ["ttft", "tpot", "load", "select"]  # columns of results, in seconds


def has_times(rows: pd.DataFrame) -> bool:
    """Whether the rows, or a summary of them, hold times."""
    return "ttft" in rows


def summarise(rows: pd.DataFrame, by: list[str] | None = None, baseline: str = "full_prefill") -> pd.DataFrame:
    """One row per method and ratio, in the order of the results.

    Parameters
    ----------
    rows
        Results as `ragkv.experiment.evaluate` gives them.
    by
        Labels (``["length"]``) by which to group the results first.
    baseline
        The method with which the others are compared, prompt by prompt.

    Returns
    -------
    DataFrame
        ``score`` and its 95 % interval ``low, high``; ``difference`` to the baseline with ``difference_low,
        difference_high``; ``prompts``; and where the results have them, the mean ``share`` of the document that was
        recomputed, and median ``ttft`` and ``tpot`` in seconds. Intervals are percentiles of 2,000 resamples of the
        prompts, drawn with a fixed seed. That of the score is Wilson's if the task's scores are all 0 or 1: it holds
        for few prompts, and has a width even if all answers are right.
    """
    tables = []
    for labels, part in rows.groupby(by, sort=True) if by else [((), rows)]:
        scores = part.pivot_table(index="prompt", columns=GROUP, values="score", sort=False)
        base = scores.xs(baseline, axis=1, level="method").iloc[:, 0] if baseline in scores.columns else None
        right_or_wrong = bool(part["score"].isin([0, 1]).all())
        for key, group in part.groupby(GROUP, sort=False):
            line: dict[str, object] = dict(zip([*(by or []), *GROUP], (*labels, *key), strict=True))
            score = interval(scores[key].to_numpy(), "score")
            line |= {"score": score["score"], "low": score["score_low"], "high": score["score_high"]}
            if right_or_wrong:
                right = binomtest(int(group["score"].sum()), len(group))
                line["low"], line["high"] = right.proportion_ci(method="wilson")
            if base is not None:
                line |= interval((scores[key] - base).to_numpy(), "difference")
            line["prompts"] = len(group)
            if "share" in group:
                line["share"] = group["share"].mean()
            line |= {name: group[name].median() for name in ("ttft", "tpot") if name in group}
            tables.append(line)
    return pd.DataFrame(tables)


def interval(values: np.ndarray, name: str = "mean", seed: int = 0) -> dict[str, float]:
    """The mean of `values` and its 95 % bootstrap interval (percentiles), as ``name, name_low, name_high``."""
    values = values[~np.isnan(values)]
    mean = float(values.mean()) if len(values) else np.nan
    low = high = mean  # of one value there is only one resample
    if len(values) > 1:
        resampled = bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=seed)
        low, high = map(float, resampled.confidence_interval)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def shares(*results: pd.DataFrame) -> pd.Series:
    """The share of the document that was really recomputed, by method and ratio: its mean, averaged over tasks.

    A selector with a threshold recomputes less than its ratio allows.
    """
    means = [rows.groupby(GROUP, sort=False)["share"].mean() for rows in results]
    return pd.concat(means).groupby(level=GROUP, sort=False).mean()


def metrics(rows: pd.DataFrame) -> pd.DataFrame:
    """The mean of every metric that the task has, by method and ratio."""
    names = [name for name in rows.columns if name.startswith("metric_")]
    means = rows.groupby(GROUP, sort=False)[names].mean()
    return means.rename(columns=lambda name: name.removeprefix("metric_"))


def scores_by_task(results: dict[str, pd.DataFrame], by: str | None = None) -> pd.DataFrame:
    """Mean scores of several tasks side by side, with their average.

    Parameters
    ----------
    results
        Rows by task.
    by
        A label (``"length"``): tasks whose results have it get a column per value, others a single column.

    Returns
    -------
    DataFrame
        Indexed by those methods and ratios that every task was run with; the last column is the mean of the others.
    """
    columns = {}
    for task, rows in results.items():
        if by in rows:
            parts = {f"{task}, {value}": part for value, part in rows.groupby(by, sort=True)}
        else:
            parts = {task: rows}
        for name, part in parts.items():
            columns[name] = part.groupby(GROUP, sort=False)["score"].mean()
    table = pd.DataFrame(columns).dropna()
    order = [key for key in next(iter(columns.values())).index if key in table.index]
    table = table.reindex(order)
    return table.assign(average=table.mean(axis=1))
