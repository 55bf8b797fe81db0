"""TTFT predicted: what a prefill computes, reads and loads, over what a machine was measured to reach.

A prefill's time has three parts: its operations (`ragkv.planning`) over the machine's speed in matrix products, the
weights, read once in every pass, and the prompt's keys and values, brought to their places and read in every pass, both
over the bandwidth of its memory. No part runs at its limit: how many times its limit each takes is a property of the
machine and of the code, found from recorded rows of `ragkv.bench`. Keys and values that lie elsewhere are loaded while
the first pass runs: the longer of the two counts. How fast each tier loads is found from the rows, too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ragkv.costs.prefill import fused, hops
from ragkv.costs.shape import SHAPES, Shape
from ragkv.selectors import SELECTORS, Selector, get_selector, selector_options

COMPUTED = 2  # bytes of a number as the model gives it: records are in bfloat16
FULL = get_selector("full_prefill")


@dataclass(frozen=True)
class Machine:
    """A GPU's measured speed.

    Attributes
    ----------
    device
        Its name.
    tflops
        Of matrix products, in 1e12 operations a second.
    memory_gbs
        Of copies in its memory, in 1e9 bytes a second, read and written.
    tiers
        Of loading, by where from, in 1e9 bytes a second.
    times
        How many times their limit operations, weights, and keys and values take.
    """

    device: str
    tflops: float
    memory_gbs: float
    tiers: Mapping[str, float]
    times: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @classmethod
    def recorded(cls, found: dict) -> "Machine":
        """From a record of ``python -m ragkv.bench --shape``, as `ragkv.results.files.read_json` gives it.

        Raises
        ------
        ValueError
            It has no full prefills, or none whose keys and values lie on the GPU.
        """
        return cls._fitting(found, own_rows(found))

    @classmethod
    def _fitting(cls, found: dict, rows: pd.DataFrame) -> "Machine":
        """From some of a record's rows: first what takes no loading, then each tier."""
        ceilings, shape = found["ceilings"], shape_of(found)
        machine = cls(found["provenance"]["device"], ceilings["tflops"], ceilings["memory_gbs"], {})
        here = rows["tier"].isin(("", "cuda"))
        machine = replace(machine, times=machine._times(shape, rows[here]))
        speeds = {str(tier): machine._loading(shape, part) for tier, part in rows[~here].groupby("tier", sort=False)}
        return replace(machine, tiers=speeds)

    def parts(self, shape: Shape, selector: Selector, tokens: int, size: float = COMPUTED) -> np.ndarray:
        """Seconds of operations, weights, and keys and values at their limits: ``(3,)``.

        Parameters
        ----------
        size
            Bytes of a number of the stored keys and values.
        """
        passes = 1 + hops(selector)
        numbers = size + COMPUTED * (1 + passes) if selector.reuses else 0  # read as stored, placed, attended to
        read = np.array([shape.weights_read(passes) * COMPUTED, tokens * shape.bytes_per_token(numbers)])
        return np.array([fused(shape, selector, tokens) / self.tflops / 1e12, *(read / self.memory_gbs / 1e9)])

    def ttft(self, shape: Shape, selector: Selector, tokens: int, load: float = 0.0, size: float = COMPUTED) -> float:
        """Seconds to the first token of a prompt of `tokens` tokens, whose keys and values load in `load` seconds."""
        first, rest = self._passes(shape, selector, tokens, size)
        return max(first, load) + rest

    def break_even(self, shape: Shape, selector: Selector, tokens: int, size: float = COMPUTED) -> float:
        """The bandwidth in 1e9 bytes a second above which reuse is faster than a full prefill; infinite if none is."""
        first, rest = self._passes(shape, selector, tokens, size)
        full = self.ttft(shape, FULL, tokens)
        return tokens * shape.bytes_per_token(size) / (full - rest) / 1e9 if first + rest < full else float("inf")

    def _passes(self, shape: Shape, selector: Selector, tokens: int, size: float) -> tuple[float, float]:
        """Seconds that loading can hide behind, and those that come on top; a probe's first pass reads all."""
        operations, weights, states = self.parts(shape, selector, tokens, size) * self.times
        looks = hops(selector)
        first = weights / (1 + looks) if looks else operations + weights
        return first, operations + weights - first + states

    def _times(self, shape: Shape, rows: pd.DataFrame) -> tuple[float, float, float]:
        """The `times` that fit rows without loading best: least squares of their relative errors."""
        if not {"", "cuda"} <= set(rows["tier"]):
            raise ValueError("the record needs full prefills and rows of the tier 'cuda' to predict from")
        limits = np.array([self.parts(shape, *prompt) for prompt in _selected(rows)])  # (rows, 3)
        shares = limits / (rows["p50"].to_numpy()[:, None] / 1e3)
        squares, sums, times = shares.T @ shares, shares.sum(0), np.ones(3)
        for _ in range(500):  # one after the other, none below 1: nothing is faster than its limit
            for i in range(3):
                times[i] = max(1.0, times[i] + (sums[i] - squares[i] @ times) / squares[i, i])
        return float(times[0]), float(times[1]), float(times[2])

    def _loading(self, shape: Shape, rows: pd.DataFrame) -> float:
        """The bandwidth of a tier that fits its rows best, of those that some row alone would need."""
        prompts, measured = _selected(rows), rows["p50"].to_numpy() / 1e3
        states = np.array([tokens * shape.bytes_per_token(COMPUTED) for _, tokens in prompts])
        loads = measured - [self._passes(shape, *prompt, COMPUTED)[1] for prompt in prompts]

        def error(gbs: float) -> float:
            times = [self.ttft(shape, *prompt, load) for prompt, load in zip(prompts, states / gbs / 1e9, strict=True)]
            return float(np.abs(times / measured - 1).mean())

        return min(map(float, states[loads > 0] / loads[loads > 0] / 1e9), key=error, default=float("inf"))


def check(found: dict) -> pd.DataFrame:
    """Predictions beside a record's rows. What a length is predicted from are the other lengths' rows alone.

    Returns
    -------
    DataFrame
        ``tokens, tier, selector, ratio, hops``, ``measured`` and ``predicted`` in milliseconds, ``error`` as a share of
        what was measured. Rows of a tier that was recorded at one length only are not in it.

    Raises
    ------
    ValueError
        The record has a single length.
    """
    shape, rows, tables = shape_of(found), own_rows(found), []
    if rows["tokens"].nunique() < 2:
        raise ValueError("the record has rows of one length only: nothing is left to predict it from")
    for tokens, part in rows.groupby("tokens", sort=False):
        machine = Machine._fitting(found, rows[rows["tokens"] != tokens])
        part = part[part["tier"].isin(("", "cuda", *machine.tiers))]
        table = part[["tokens", "tier", "selector", "ratio", "hops"]].assign(measured=part["p50"])
        loads = [tokens * shape.bytes_per_token(COMPUTED) / machine.tiers.get(t, np.inf) / 1e9 for t in part["tier"]]
        prompts = zip(_selected(part), loads, strict=True)
        table["predicted"] = [1e3 * machine.ttft(shape, *prompt, load) for prompt, load in prompts]
        tables.append(table.assign(error=table["predicted"] / table["measured"] - 1))
    return pd.concat(tables).reset_index(drop=True)


def own_rows(found: dict) -> pd.DataFrame:
    """A record's rows of this package's selectors; transformers' own prefills are another code's."""
    rows = pd.DataFrame(found["rows"]).fillna({"tier": ""})
    return rows[rows["selector"].isin(SELECTORS)].reset_index(drop=True)


def shape_of(found: dict) -> Shape:
    """The shape of the model that a record is about."""
    given = found["parameters"]
    shape = Shape.of(next(model for model in SHAPES if given["shape"] in model.lower()))
    layers = re.fullmatch(r"\d+", str(given.get("layers")))
    return replace(shape, layers=int(layers[0])) if layers else shape


def _selected(rows: pd.DataFrame) -> list[tuple[Selector, int]]:
    """The selector and length of every row."""
    return [(_selector(row), int(row["tokens"])) for row in rows.to_dict("records")]


def _selector(row: dict) -> Selector:
    options = {name: row[name] for name in ("ratio", "hops") if pd.notna(row.get(name))}
    options = {name: value for name, value in options.items() if name in selector_options(row["selector"])}
    if "hops" in options:
        options["hops"] = int(options["hops"])
    return get_selector(row["selector"], **options)
