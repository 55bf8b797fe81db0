"""A corpus, what is asked of it, and the tiers that hold it: where the requested chunks come from.

Every GPU has tiers of its own (its memory, host memory, an NVMe disk); the last one holds all chunks and is shared. The
chunks that are asked for most lie in the fastest tier, as many as it holds, the next ones in the tier behind it.
Chunks of a prompt are drawn independently, the one of rank r with a probability in proportion to r**-zipf.
"""

import math
from itertools import pairwise

from pydantic import Field, PositiveFloat, model_validator

from ragkv.costs.roofline import COMPUTED
from ragkv.costs.shape import Shape
from ragkv.parameters import Parameters
from ragkv.selectors import Selector, get_selector
from ragkv.store.quantize import check_format, number_size


class Tier(Parameters):
    """Where chunks lie, as one GPU sees it: what machines share is divided by their GPUs.

    Attributes
    ----------
    gigabytes
        Its room, in 1e9 bytes; None has room for everything.
    gbs
        Its bandwidth in 1e9 bytes a second, or the name of a tier of the machine's record, which was measured; None
        where nothing is loaded, as keys and values lie in the GPU's memory.
    latency
        Milliseconds until the first byte comes.
    """

    gigabytes: float | None = Field(default=None, ge=0)
    gbs: PositiveFloat | str | None = None
    latency: float = Field(default=0.0, ge=0)


class Deployment(Parameters):
    """A corpus, what is asked of it, and how.

    Attributes
    ----------
    model
        One of `ragkv.costs.shape.SHAPES`, or anything with a configuration.
    chunk_tokens, retrieved
        Tokens of a chunk, and chunks of a prompt.
    rate
        Requests per second.
    selector, options
        As `ragkv.selectors.get_selector` takes them.
    format
        How keys and values are stored (`ragkv.store.quantize`).
    zipf
        How unequally chunks are asked for: 0 is all alike, around 1 is a long tail.
    utilisation
        The share of its time that a GPU may be busy.
    tiers
        From the fastest to the one that holds everything.
    """

    model: str
    chunk_tokens: int = Field(default=512, ge=1)
    retrieved: int = Field(default=16, ge=1)
    rate: float = Field(gt=0)
    selector: str = "a3"
    options: dict[str, float | int | str | bool] = Field(default={})
    format: str = "model"
    zipf: float = Field(default=0.0, ge=0)
    utilisation: float = Field(default=0.7, gt=0, le=1)
    tiers: dict[str, Tier]

    @model_validator(mode="after")
    def _fits(self) -> "Deployment":
        check_format(self.format, self.shape.head_dim)
        if not self.tiers or list(self.tiers.values())[-1].gigabytes is not None:
            raise ValueError("the last tier must hold every chunk: leave its gigabytes out, or add a tier behind it")
        if not self.method.reuses:
            raise ValueError(f"{self.selector} reuses nothing, so there is nothing to store: choose another selector")
        return self

    @property
    def tokens(self) -> int:
        """Tokens of a prompt's document."""
        return self.chunk_tokens * self.retrieved

    @property
    def method(self) -> Selector:
        return get_selector(self.selector, **self.options)

    @property
    def size(self) -> float:
        """Bytes of a stored number."""
        return number_size(self.format, COMPUTED)

    @property
    def shape(self) -> Shape:
        return Shape.of(self.model)

    @property
    def chunk_bytes(self) -> float:
        return self.chunk_tokens * self.shape.bytes_per_token(self.size)

    def room(self, tier: Tier) -> float:
        """The chunks that a tier has room for."""
        return math.inf if tier.gigabytes is None else tier.gigabytes * 1e9 / self.chunk_bytes

    def shares(self, chunks: int) -> dict[str, float]:
        """The share of requested chunks that each tier gives, of a corpus of so many."""
        ends, held = [0.0], 0.0
        for tier in self.tiers.values():
            held = min(float(chunks), held + self.room(tier))
            ends.append(popular(held, chunks, self.zipf))
        return {name: stop - start for name, (start, stop) in zip(self.tiers, pairwise(ends), strict=True)}


def popular(first: float, chunks: int, zipf: float) -> float:
    """The share of requests that the `first` most asked for of `chunks` get."""
    return min(1.0, _harmonic(first, zipf) / _harmonic(chunks, zipf))


def _harmonic(count: float, power: float, exact: int = 1000) -> float:
    """The sum of i**-power up to `count`: term by term, then as an integral with its ends' correction."""
    if count <= exact:
        whole = math.floor(count)
        return sum(i**-power for i in range(1, whole + 1)) + (count - whole) * (whole + 1) ** -power
    rising, span = 1 - power, math.log(count / exact)
    integral = exact**rising * math.expm1(rising * span) / rising if rising else span  # of x**-power from exact on
    return _harmonic(exact, power) + integral + (count**-power - exact**-power) / 2
