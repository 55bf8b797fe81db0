"""Speed at equal fidelity: the time to first token on one model's shape, beside the gap recovered on another model.

Latency is measured with random weights and fidelity with a model that is small enough for many prompts, so the two are
joined by the method and the share that it recomputes. What chunks were computed behind does not change a prefill:
methods that differ only in this have the same time.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ragkv.costs.records import prefills_of
from ragkv.results.files import read_json
from ragkv.selectors import Selector, get_selector, selector_options

LEVELS = (0.9, 0.95, 0.99)  # of the gap
Key = tuple[type[Selector], float, int, str]


def recorded_fidelity(folder: Path, model: str, benchmark: str) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """What a recorded profile says of a benchmark's fidelity, over all its tasks.

    Parameters
    ----------
    folder
        Of the record, such as outputs/reference/smollm2-gpu.
    model
        The name of the model's folder in it.

    Returns
    -------
    table
        ``method, ratio, recomputed, kl, recovered_kl``.
    methods
        The profile's methods, as its results keep them.

    Raises
    ------
    ValueError
        The record has no fidelity of this benchmark.
    """
    overview = pd.read_csv(folder / "overview-fidelity.csv")
    measured = f"{model}, {benchmark}"
    columns = {f"{measured}, KL": "kl", f"{measured}, recovered": "recovered_kl"}
    if missing := columns.keys() - set(overview):
        raise ValueError(
            f"{folder / 'overview-fidelity.csv'} has no column {min(missing)!r}: name a model and a benchmark"
        )
    table = overview.rename(columns=columns)[["method", "ratio", "recomputed", "kl", "recovered_kl"]]
    result = min((folder / model / benchmark).glob("*.json"))
    return table, read_json(result, "make record")["parameters"]["methods"]


def speed_and_fidelity(
    fidelity: pd.DataFrame, methods: Sequence[Mapping[str, Any]], bench: pd.DataFrame, tokens: int, tier: str
) -> pd.DataFrame:
    """The time to first token of every method and ratio whose fidelity was measured.

    Parameters
    ----------
    fidelity
        ``method, ratio, recovered_kl``, see `ragkv.results.fidelity.fidelity_by_method`.
    methods
        The methods of the profile that `fidelity` is from, as a task's result keeps them in its parameters.
    bench
        Rows of a record of ``ragkv bench --shape``, see `ragkv.costs.records.own_rows`.
    tokens, tier
        Which of its prompts, and where keys and values come from. Full prefills load nothing. Of prefills that differ
        only in the layer at which they choose, the slowest counts.

    Returns
    -------
    DataFrame
        The rows of `fidelity` that were timed, with ``p50`` (milliseconds) and ``speed-up`` (over the fastest full
        prefill).
    """
    timed = bench[(bench["tokens"] == tokens) & bench["tier"].isin(["", tier])]
    slowest_last = timed.sort_values("p50")
    times = {
        _key(selector): place
        for place, (selector, _) in zip(slowest_last.index, prefills_of(slowest_last), strict=True)
    }
    by_name = {method["label"] or method["selector"]: method for method in methods}
    places = [
        times.get(_key(_selector(by_name[method], ratio)))
        for method, ratio in zip(fidelity["method"], fidelity["ratio"], strict=True)
    ]
    found = fidelity.assign(place=places).dropna(subset="place")
    return found.merge(timed[["p50", "speed-up"]], left_on="place", right_index=True).drop(columns="place")


def fastest(table: pd.DataFrame, levels: Sequence[float] = LEVELS) -> pd.DataFrame:
    """How fast each method is where it recovers a share of the gap: at the fastest ratio that was measured.

    Parameters
    ----------
    table
        Of `speed_and_fidelity`.
    levels
        Shares of the gap.

    Returns
    -------
    DataFrame
        ``method, level, ratio, recovered_kl, p50, speed-up``: a row per method and level that one of its ratios
        reaches, the fastest method of a level first.
    """
    rows = []
    for level in levels:
        enough = table[table["recovered_kl"] >= level]
        best = enough.loc[enough.groupby("method", sort=False)["speed-up"].idxmax()].assign(level=level)
        rows.append(best.sort_values("speed-up", ascending=False))
    columns = ["method", "level", "ratio", "recovered_kl", "p50", "speed-up"]
    return pd.concat(rows, ignore_index=True)[columns]


def _selector(method: Mapping[str, Any], ratio: float) -> Selector:
    known = selector_options(method["selector"])
    return get_selector(method["selector"], **method["options"] | ({"ratio": ratio} if "ratio" in known else {}))


def _key(selector: Selector) -> Key:
    """What a prefill's time depends on, but for the layer of a choice: models differ in how many they have."""
    return type(selector), selector.ratio, selector.passes, getattr(selector, "keys", "")
