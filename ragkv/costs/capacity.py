"""Planning beyond one machine: bytes, bandwidths, GPUs and TTFT, and where each tier stops paying off.

Calculated from formulas (`ragkv.costs.prefill`, `ragkv.costs.roofline`) and one machine's recorded rows. Not included:
decoding, waiting for other requests, several prompts at a time on one GPU, and unpacking of quantised formats.
"""

import math
from collections.abc import Iterable, Iterator

import pandas as pd

from ragkv.costs.deployment import Deployment, Tier
from ragkv.costs.roofline import FULL, Machine
from ragkv.selectors import selector_options

PERCENT = [percent / 100 for percent in range(1, 101)]


def bandwidth(tier: Tier, machine: Machine) -> float:
    """How fast a tier loads, in 1e9 bytes a second; infinite if nothing needs loading.

    Raises
    ------
    ValueError
        The tier was not measured on this machine.
    """
    if tier.gbs is None:
        return math.inf
    if not isinstance(tier.gbs, str):
        return tier.gbs
    if tier.gbs not in machine.tiers:
        known = ", ".join(machine.tiers) or "none"
        raise ValueError(f"the record of {machine.device} has no tier {tier.gbs!r}: give gbs a number, or {known}")
    return machine.tiers[tier.gbs]


def load(deployment: Deployment, machine: Machine, shares: dict[str, float]) -> float:
    """Seconds to load a prompt's keys and values, the mean over prompts.

    Parameters
    ----------
    shares
        The share of requested chunks that comes from each tier.
    """
    seconds = 0.0
    for name, share in shares.items():
        tier = deployment.tiers[name]
        size = share * deployment.retrieved * deployment.chunk_bytes
        any_chunk = 1 - (1 - share) ** deployment.retrieved  # the probability that some chunk lies there
        seconds += size / bandwidth(tier, machine) / 1e9
        seconds += any_chunk * tier.latency / 1e3
    return seconds


def ttft(deployment: Deployment, machine: Machine, shares: dict[str, float]) -> float:
    """Seconds to the first token, given the share of requested chunks that comes from each tier."""
    seconds = load(deployment, machine, shares)
    return machine.ttft(deployment.shape, deployment.method, deployment.tokens, seconds, deployment.number_bytes)


def by_corpus(deployment: Deployment, machine: Machine, sizes: list[int]) -> pd.DataFrame:
    """What corpora of these numbers of chunks take.

    Returns
    -------
    DataFrame
        ``chunks``; ``terabytes`` of the store; ``precompute`` in GPU-hours; ``from <tier>``: the share of requested
        chunks that comes from it; ``ttft`` and ``full_ttft`` in milliseconds; ``gpus`` and ``full_gpus`` that the first
        tokens keep busy; ``shared_gbs``: what the last tier must deliver to all GPUs, in 1e9 bytes a second.
    """
    last = list(deployment.tiers)[-1]
    full = machine.ttft(deployment.shape, FULL, deployment.tokens)
    one_chunk = machine.ttft(deployment.shape, FULL, deployment.chunk_tokens)
    requested_gbs = deployment.rate * deployment.retrieved * deployment.chunk_bytes / 1e9
    table = []
    for chunks in sizes:
        shares = deployment.shares(chunks)
        fused = ttft(deployment, machine, shares)
        row = {
            "chunks": chunks,
            "terabytes": chunks * deployment.chunk_bytes / 1e12,
            "precompute": chunks * one_chunk / 3600,
        }
        row |= {f"from {name}": share for name, share in shares.items()}
        row |= {"ttft": fused * 1e3, "full_ttft": full * 1e3}
        row |= {"gpus": _gpus(deployment, fused), "full_gpus": _gpus(deployment, full)}
        row |= {"shared_gbs": requested_gbs * shares[last]}
        table.append(row)
    return pd.DataFrame(table)


def _gpus(deployment: Deployment, seconds: float) -> int:
    """GPUs needed if every request keeps one busy for `seconds`."""
    return math.ceil(deployment.rate * seconds / deployment.utilisation)


def by_tier(deployment: Deployment, machine: Machine) -> pd.DataFrame:
    """Where each tier stops paying off: where a prompt loaded from it alone is no faster than a full prefill.

    Returns
    -------
    DataFrame
        ``tier``; the ``chunks`` that fit in it; ``gbs``; ``break_even``: the bandwidth above which it pays off if it
        has no latency; ``ttft`` in milliseconds; ``speed-up`` over the full prefill; ``ratio``: the largest whole
        percentage of tokens that can be recomputed while it pays off, NaN if it never does.
    """
    full = machine.ttft(deployment.shape, FULL, deployment.tokens)
    break_even = _break_even(deployment, machine)
    table = []
    for name, tier in deployment.tiers.items():
        alone = {name: 1.0}
        seconds = ttft(deployment, machine, alone)
        ratios = [ratio for ratio, other in _at_ratios(deployment, PERCENT) if ttft(other, machine, alone) < full]
        row = {"tier": name, "chunks": deployment.chunks_in(tier)}
        row |= {"gbs": bandwidth(tier, machine), "break_even": break_even}
        row |= {"ttft": seconds * 1e3, "speed-up": full / seconds, "ratio": max(ratios, default=math.nan)}
        table.append(row)
    return pd.DataFrame(table)


def break_evens(
    deployment: Deployment, machine: Machine, ratios: Iterable[float], retrieved: list[int]
) -> pd.DataFrame:
    """The bandwidth above which loading pays off, by ratio and by the number of chunks in the prompt.

    Returns
    -------
    DataFrame
        ``model, ratio, tokens``, and ``gbs`` in 1e9 bytes a second; infinite if reuse is never faster.
    """
    table = []
    for ratio, other in _at_ratios(deployment, ratios):
        for count in retrieved:
            prompt = other.model_copy(update={"retrieved": count})
            gbs = _break_even(prompt, machine)
            table.append({"model": other.model, "ratio": ratio, "tokens": prompt.tokens, "gbs": gbs})
    return pd.DataFrame(table)


def _break_even(deployment: Deployment, machine: Machine) -> float:
    return machine.break_even(deployment.shape, deployment.method, deployment.tokens, deployment.number_bytes)


def _at_ratios(deployment: Deployment, ratios: Iterable[float]) -> Iterator[tuple[float, Deployment]]:
    """The deployment at each of these ratios, or as it is if its selector has one ratio only."""
    if "ratio" not in selector_options(deployment.selector):
        yield deployment.method.ratio, deployment
        return
    for ratio in ratios:
        yield ratio, deployment.model_copy(update={"options": deployment.options | {"ratio": ratio}})
