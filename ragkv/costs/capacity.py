"""Planning past one machine: bytes, bandwidths, GPUs and TTFT, and where each tier stops paying.

From formulas (`ragkv.costs.prefill`, `ragkv.costs.roofline`) and one machine's recorded rows. What is not in it:
decoding, waiting for other requests, several prompts at a time on one GPU, and unpacking of formats.
"""

import math
from collections.abc import Iterable, Iterator

import pandas as pd

from ragkv.costs.deployment import Deployment, Tier
from ragkv.costs.roofline import FULL, Machine
from ragkv.selectors import selector_options

PERCENT = [percent / 100 for percent in range(1, 101)]


def bandwidth(tier: Tier, machine: Machine) -> float:
    """Of loading from a tier, in 1e9 bytes a second; infinite where nothing is loaded.

    Raises
    ------
    ValueError
        It was not measured on this machine.
    """
    if isinstance(tier.gbs, str):
        if tier.gbs not in machine.tiers:
            known = ", ".join(machine.tiers) or "none"
            raise ValueError(f"the record of {machine.device} has no tier {tier.gbs!r}: give gbs a number, or {known}")
        return machine.tiers[tier.gbs]
    return math.inf if tier.gbs is None else tier.gbs


def load(deployment: Deployment, machine: Machine, given: dict[str, float]) -> float:
    """Seconds to load a prompt's keys and values, a share of them from each tier; the mean over prompts."""
    seconds = 0.0
    for name, share in given.items():
        tier = deployment.tiers[name]
        seconds += share * deployment.retrieved * deployment.chunk_bytes / bandwidth(tier, machine) / 1e9
        seconds += (1 - (1 - share) ** deployment.retrieved) * tier.latency / 1e3  # if any chunk lies there
    return seconds


def ttft(deployment: Deployment, machine: Machine, given: dict[str, float]) -> float:
    """Seconds to the first token where so large a share of the chunks comes from each tier."""
    seconds = load(deployment, machine, given)
    return machine.ttft(deployment.shape, deployment.method, deployment.tokens, seconds, deployment.size)


def by_corpus(deployment: Deployment, machine: Machine, sizes: list[int]) -> pd.DataFrame:
    """What corpora of these numbers of chunks take.

    Returns
    -------
    DataFrame
        ``chunks``, ``terabytes`` of the store, ``precompute`` in GPU-hours, ``from <tier>``: its share of the chunks
        that are asked for, ``ttft`` and ``full_ttft`` in milliseconds, ``gpus`` and ``full_gpus`` for the first tokens,
        and ``shared_gbs``: what the last tier must give to all GPUs, in 1e9 bytes a second.
    """
    shape, last = deployment.shape, list(deployment.tiers)[-1]
    full, chunk = (machine.ttft(shape, FULL, tokens) for tokens in (deployment.tokens, deployment.chunk_tokens))
    table = []
    for chunks in sizes:
        given = deployment.shares(chunks)
        fused = ttft(deployment, machine, given)
        asked = deployment.rate * deployment.retrieved * deployment.chunk_bytes / 1e9
        table.append(
            {"chunks": chunks, "terabytes": chunks * deployment.chunk_bytes / 1e12, "precompute": chunks * chunk / 3600}
            | {f"from {name}": share for name, share in given.items()}
            | {"ttft": fused * 1e3, "full_ttft": full * 1e3}
            | {"gpus": _gpus(deployment, fused), "full_gpus": _gpus(deployment, full)}
            | {"shared_gbs": asked * given[last]}
        )
    return pd.DataFrame(table)


def _gpus(deployment: Deployment, seconds: float) -> int:
    """GPUs that are busy for `seconds` with every request."""
    return math.ceil(deployment.rate * seconds / deployment.utilisation)


def by_tier(deployment: Deployment, machine: Machine) -> pd.DataFrame:
    """Where each tier stops paying: when a prompt whose chunks all come from it is no faster than a full prefill.

    Returns
    -------
    DataFrame
        ``tier``, the ``chunks`` that it holds, ``gbs``, ``break_even``: the bandwidth above which it pays where it has
        no latency, ``ttft`` in milliseconds, ``speed-up`` over the full prefill, and ``ratio``: the largest whole
        percentage of the tokens that can be recomputed while it pays; NaN where it never does.
    """
    full = machine.ttft(deployment.shape, FULL, deployment.tokens)
    table = []
    for name, tier in deployment.tiers.items():
        seconds = ttft(deployment, machine, {name: 1.0})
        ratios = [r for r, other in _recomputing(deployment, PERCENT) if ttft(other, machine, {name: 1.0}) < full]
        table.append(
            {"tier": name, "chunks": deployment.room(tier)}
            | {"gbs": bandwidth(tier, machine), "break_even": _break_even(deployment, machine)}
            | {"ttft": seconds * 1e3, "speed-up": full / seconds, "ratio": max(ratios, default=math.nan)}
        )
    return pd.DataFrame(table)


def break_evens(
    deployment: Deployment, machine: Machine, ratios: Iterable[float], retrieved: list[int]
) -> pd.DataFrame:
    """The bandwidth above which loading pays, by the share recomputed and the prompt's number of chunks.

    Returns
    -------
    DataFrame
        ``model, ratio, tokens``, and ``gbs`` in 1e9 bytes a second; infinite where reuse is never faster.
    """
    return pd.DataFrame(
        {"model": other.model, "ratio": ratio, "tokens": prompt.tokens, "gbs": _break_even(prompt, machine)}
        for ratio, other in _recomputing(deployment, ratios)
        for prompt in (other.model_copy(update={"retrieved": count}) for count in retrieved)
    )


def _break_even(deployment: Deployment, machine: Machine) -> float:
    return machine.break_even(deployment.shape, deployment.method, deployment.tokens, deployment.size)


def _recomputing(deployment: Deployment, ratios: Iterable[float]) -> Iterator[tuple[float, Deployment]]:
    """The deployment with each of these ratios; as it is where its selector leaves no choice."""
    if "ratio" not in selector_options(deployment.selector):
        yield deployment.method.ratio, deployment
        return
    for ratio in ratios:
        yield ratio, deployment.model_copy(update={"options": deployment.options | {"ratio": ratio}})
