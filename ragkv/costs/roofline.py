"""How long a prefill takes on a machine: its limit, its predicted TTFT, and what bounds it.

Everything follows from three parts: operations over the machine's speed in matrix products, and weights and keys and
values over the bandwidth of its memory (`Machine.parts`). They answer three questions:

- `Machine.limit`: how fast could it be at best? The longest of computing, moving bytes and loading, as if they ran side
  by side at full speed.
- `Machine.ttft`: how long will it take? The sum of the parts, each multiplied by how many times its limit it was
  measured to take (`Machine.times`). Keys and values from elsewhere load while the first pass runs: the longer counts.
- `Machine.balance`: is it loading or computing that takes longer, and at which ratio would that change? After
  CacheBlend's controller (arXiv 2405.16444, section 6).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from ragkv.costs.prefill import BF16_BYTES, bytes_loaded, bytes_moved, kv_bytes, operations, weight_bytes
from ragkv.costs.records import ON_GPU, own_rows, prefills_of, shape_of
from ragkv.costs.shape import Shape
from ragkv.options import option_names
from ragkv.selectors import Selector, get_selector

FULL = get_selector("full_prefill")


@dataclass(frozen=True)
class Balance:
    """How long the two halves of a prefill that run side by side take.

    Attributes
    ----------
    loading, computing
        Seconds.
    turning
        The ratio at which both take equally long: below it loading takes longer, so that recomputing less saves no
        time. 0 if computing always takes longer, 1 if loading does.
    """

    loading: float
    computing: float
    turning: float

    @property
    def bound(self) -> str:
        """``"loading"`` or ``"computing"``, whichever takes longer."""
        return "loading" if self.loading > self.computing else "computing"


@dataclass(frozen=True)
class Machine:
    """A GPU's measured speed.

    Attributes
    ----------
    device
        Its name.
    tflops
        Speed of matrix products, in 1e12 operations a second.
    memory_gbs
        Speed of copies within its memory, in 1e9 bytes a second, read and written.
    tiers
        Speed of loading keys and values by where they lie, in 1e9 bytes a second.
    times
        How many times their limit operations, weights, and keys and values take.
    """

    device: str
    tflops: float
    memory_gbs: float
    tiers: Mapping[str, float] = field(default_factory=dict)
    times: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @classmethod
    def recorded(cls, record: dict) -> "Machine":
        """From a record of ``python -m ragkv.bench --shape``, as `ragkv.results.files.read_json` returns it.

        Raises
        ------
        ValueError
            It has no full prefills, or no rows whose keys and values lie on the GPU.
        """
        return cls._fitted(record, own_rows(record))

    @classmethod
    def _fitted(cls, record: dict, rows: pd.DataFrame) -> "Machine":
        """From some of a record's rows: first `times`, from rows that load nothing, then each tier's speed."""
        ceilings, shape = record["ceilings"], shape_of(record)
        machine = cls(record["provenance"]["device"], ceilings["tflops"], ceilings["memory_gbs"])
        on_gpu = rows["tier"].isin(ON_GPU)
        machine = replace(machine, times=machine._fit_times(shape, rows[on_gpu]))
        by_tier = rows[~on_gpu].groupby("tier", sort=False)
        return replace(machine, tiers={str(tier): machine._fit_loading(shape, part) for tier, part in by_tier})

    def computing(self, count: float) -> float:
        """Seconds of so many floating-point operations."""
        return count / self.tflops / 1e12

    def moving(self, size: float) -> float:
        """Seconds to move so many bytes through the GPU's memory."""
        return size / self.memory_gbs / 1e9

    def parts(self, shape: Shape, selector: Selector, tokens: int, stored: float = BF16_BYTES) -> np.ndarray:
        """Seconds of operations, weights, and keys and values at their limits: ``(3,)``.

        A full prefill has no third part: it computes its keys and values, and moving them is part of that.

        Parameters
        ----------
        tokens
            Tokens of the prompt.
        stored
            Bytes of a number of the stored keys and values.
        """
        computing = self.computing(operations(shape, selector, tokens))
        weights = self.moving(weight_bytes(shape, selector))
        states = self.moving(kv_bytes(shape, selector, tokens, stored=stored)) if selector.reuses else 0.0
        return np.array([computing, weights, states])

    def limit(self, shape: Shape, selector: Selector, tokens: int, load: float = 0.0) -> float:
        """Seconds that no prefill can beat, if loading its keys and values takes `load` seconds."""
        computing = self.computing(operations(shape, selector, tokens))
        return max(computing, self.moving(bytes_moved(shape, selector, tokens)), load)

    def ttft(
        self, shape: Shape, selector: Selector, tokens: int, load: float = 0.0, stored: float = BF16_BYTES
    ) -> float:
        """Seconds to the first token, if loading the prompt's keys and values takes `load` seconds."""
        first, rest = self._passes(shape, selector, tokens, stored)
        return max(first, load) + rest

    def break_even(self, shape: Shape, selector: Selector, tokens: int, stored: float = BF16_BYTES) -> float:
        """The bandwidth in 1e9 bytes a second above which reuse beats a full prefill; infinite if none is enough."""
        first, rest = self._passes(shape, selector, tokens, stored)
        full = self.ttft(shape, FULL, tokens)
        if first + rest >= full:
            return float("inf")
        return tokens * shape.bytes_per_token(stored) / (full - rest) / 1e9

    def balance(self, shape: Shape, selector: Selector, tokens: int, gbs: float, stored: float = BF16_BYTES) -> Balance:
        """Weigh loading against computing: the operations' part alone, and the bytes that the selector really loads.

        Parameters
        ----------
        gbs
            Speed of loading, in 1e9 bytes a second.
        stored
            Bytes of a stored number, see `ragkv.store.quantize.number_size`.
        """
        loading = bytes_loaded(shape, selector, tokens, stored) / (gbs * 1e9)

        def computing(chosen: Selector) -> float:
            return self.computing(operations(shape, chosen, tokens)) * self.times[0]

        if "ratio" not in option_names(type(selector)):  # it has one ratio only
            return Balance(loading, computing(selector), float(computing(selector) < loading))
        low, high = 0.0, 1.0
        for _ in range(40):  # bisection: computing grows with the ratio
            middle = (low + high) / 2
            if computing(replace(selector, ratio=middle)) < loading:
                low = middle
            else:
                high = middle
        return Balance(loading, computing(selector), low)

    def _passes(self, shape: Shape, selector: Selector, tokens: int, stored: float) -> tuple[float, float]:
        """Seconds during which loading can be hidden, and seconds that come after.

        The first pass of a selector with passes of its own reads all keys and values and computes next to nothing:
        only reading the weights can hide their loading.
        """
        computing, weights, states = self.parts(shape, selector, tokens, stored) * self.times
        first = weights / (1 + selector.passes) if selector.passes else computing + weights
        return first, computing + weights - first + states

    def _fit_times(self, shape: Shape, rows: pd.DataFrame) -> tuple[float, float, float]:
        """The `times` that fit rows without loading best: least squares of the relative errors, none below 1."""
        if not set(ON_GPU) <= set(rows["tier"]):
            raise ValueError("the record needs full prefills and rows of the tier 'cuda' to predict from")
        limits = np.array([self.parts(shape, *prefill) for prefill in prefills_of(rows)])  # (rows, 3)
        shares = limits / (rows["p50"].to_numpy()[:, None] / 1e3)  # of the measured time
        products, sums = shares.T @ shares, shares.sum(0)
        times = np.ones(3)
        for _ in range(500):  # coordinate descent
            for i in range(3):
                step = (sums[i] - products[i] @ times) / products[i, i]
                times[i] = max(1.0, times[i] + step)  # nothing is faster than its limit
        return float(times[0]), float(times[1]), float(times[2])

    def _fit_loading(self, shape: Shape, rows: pd.DataFrame) -> float:
        """A tier's bandwidth: of those that explain one of its rows exactly, the one that fits all of them best."""
        prefills = prefills_of(rows)
        measured = rows["p50"].to_numpy() / 1e3
        sizes = np.array([tokens * shape.bytes_per_token(BF16_BYTES) for _, tokens in prefills])
        loads = measured - [self._passes(shape, *prefill, BF16_BYTES)[1] for prefill in prefills]

        def error(gbs: float) -> float:
            pairs = zip(prefills, sizes / gbs / 1e9, strict=True)
            predicted = np.array([self.ttft(shape, *prefill, load) for prefill, load in pairs])
            return float(np.abs(predicted / measured - 1).mean())

        possible = sizes[loads > 0] / loads[loads > 0] / 1e9
        return min(map(float, possible), key=error, default=float("inf"))


def check(record: dict) -> pd.DataFrame:
    """Predictions beside a record's rows; each length is predicted from the rows of the other lengths alone.

    Returns
    -------
    DataFrame
        ``tokens, tier, selector, ratio, hops``; ``measured`` and ``predicted`` in milliseconds; ``error`` as a share of
        the measured time. Rows of a tier that was recorded at one length only are left out.

    Raises
    ------
    ValueError
        The record has a single length.
    """
    shape, rows = shape_of(record), own_rows(record)
    if rows["tokens"].nunique() < 2:
        raise ValueError("the record has rows of one length only: nothing is left to predict it from")
    tables = []
    for tokens, part in rows.groupby("tokens", sort=False):
        machine = Machine._fitted(record, rows[rows["tokens"] != tokens])
        part = part[part["tier"].isin((*ON_GPU, *machine.tiers))]
        size = tokens * shape.bytes_per_token(BF16_BYTES)
        loads = [size / machine.tiers.get(tier, np.inf) / 1e9 for tier in part["tier"]]
        pairs = zip(prefills_of(part), loads, strict=True)
        predicted = np.array([1e3 * machine.ttft(shape, *prefill, load) for prefill, load in pairs])
        names = [name for name in ("tokens", "tier", "selector", "ratio", "hops", "keys") if name in part]
        table = part[names].assign(measured=part["p50"], predicted=predicted)
        tables.append(table.assign(error=table["predicted"] / table["measured"] - 1))
    return pd.concat(tables).reset_index(drop=True)
