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
Methods = dict[str, tuple[str, dict[str, Any]]]  # a selector and its options, by the method's name
Key = tuple[type[Selector], float, int, str, tuple[int, ...]]


def recorded_fidelity(folder: Path, model: str, benchmark: str) -> tuple[pd.DataFrame, Methods]:
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
        The profile's methods, with their options for this model. Those that a bench does not time are left out: those
        with an eviction, and those whose chunks are stored in a smaller format.

    Raises
    ------
    ValueError
        The record has no fidelity of this benchmark, or does not say which options a method was calibrated to.
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
    parameters = read_json(result, "make record")["parameters"]
    return table, methods_of(parameters["methods"], parameters["model"])


def methods_of(recorded: Sequence[Mapping[str, Any]], model: str) -> Methods:
    """The methods of a profile that a bench can time, see `recorded_fidelity`.

    Parameters
    ----------
    recorded
        All of its methods, as a task's result keeps them in its parameters.
    model
        The model's name in the profile.
    """
    methods: Methods = {}
    for method in recorded:
        name = method["label"] or method["selector"]
        if method["eviction"] is not None or method["offline"]["format"] != "model":
            continue
        if method["calibrated"]:
            raise ValueError(
                f"the record does not hold the options that {name!r} was calibrated to, so its time is not known: give "
                "them as the method's `options` in the profile, without `calibrated`, and record it anew"
            )
        methods[name] = method["selector"], method["options"] | method["options_by_model"].get(model, {})
    return methods


def speed_and_fidelity(
    fidelity: pd.DataFrame, methods: Methods, bench: pd.DataFrame, tokens: int, tier: str
) -> pd.DataFrame:
    """The time to first token of every method and ratio whose fidelity was measured.

    Parameters
    ----------
    fidelity
        ``method, ratio, recovered_kl``, see `ragkv.results.fidelity.fidelity_by_method`.
    methods
        The methods of the profile that `fidelity` is from, see `methods_of`.
    bench
        Rows of a record of ``ragkv bench --shape``, see `ragkv.costs.records.own_rows`.
    tokens, tier
        Which of its prompts, and where keys and values come from. Full prefills load nothing. Of prefills on stored
        keys that differ only in the layer at which they choose, the slowest counts.

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
    places = [
        times.get(_key(_selector(*methods[method], ratio))) if method in methods else None
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


def _selector(name: str, options: dict[str, Any], ratio: float) -> Selector:
    return get_selector(name, **options | ({"ratio": ratio} if "ratio" in selector_options(name) else {}))


def _key(selector: Selector) -> Key:
    """What a prefill's time depends on.

    The layers at which a selector chooses count only if all tokens are computed up to there: on stored keys a deeper
    layer takes hardly longer, and models differ in how many they have.
    """
    layers = selector.layers if selector.observes else ()
    return type(selector), selector.ratio, selector.passes, getattr(selector, "keys", ""), layers
