"""A corpus, its traffic, and the tiers that hold it: where the requested chunks come from.

Every GPU has tiers of its own (its memory, host memory, an NVMe disk); the last tier holds all chunks and is shared.
The chunks that are requested most lie in the fastest tier, as many as fit, the next ones in the tier behind it. The
chunks of a prompt are drawn independently, the one of rank r with a probability in proportion to r**-zipf.
"""

import math
from itertools import pairwise

from pydantic import Field, PositiveFloat, model_validator

from ragkv.costs.prefill import BF16_BYTES
from ragkv.costs.shape import Shape
from ragkv.parameters import Parameters
from ragkv.selectors import Selector, get_selector
from ragkv.store.quantize import check_format, number_size


class Tier(Parameters):
    """A place where chunks lie, as one GPU sees it: divide what a machine's GPUs share by their number.

    Attributes
    ----------
    gigabytes
        How much fits, in 1e9 bytes; None if everything does.
    gbs
        Its bandwidth in 1e9 bytes a second, or the name of a tier that was measured in the machine's record. None if
        nothing needs loading, as keys and values lie in the GPU's memory.
    latency
        Milliseconds until the first byte arrives.
    """

    gigabytes: float | None = Field(default=None, ge=0)
    gbs: PositiveFloat | str | None = None
    latency: float = Field(default=0.0, ge=0)


class Deployment(Parameters):
    """A corpus, its traffic, and how prompts are prefilled.

    Attributes
    ----------
    model
        One of `ragkv.costs.shape.SHAPES`, or any model whose configuration can be read.
    chunk_tokens, retrieved
        Tokens of a chunk, and chunks of a prompt.
    rate
        Requests per second.
    selector, options
        As in `ragkv.selectors.get_selector`.
    format
        How keys and values are stored (`ragkv.store.quantize`).
    zipf
        How unevenly chunks are requested: 0 is evenly, around 1 is a long tail.
    utilisation
        The share of its time that a GPU may be busy.
    tiers
        By name, from the fastest to the one that holds everything.
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
        """The selector with its options."""
        return get_selector(self.selector, **self.options)

    @property
    def number_bytes(self) -> float:
        """Bytes of a stored number."""
        return number_size(self.format, BF16_BYTES)

    @property
    def shape(self) -> Shape:
        """The model's shape."""
        return Shape.of(self.model)

    @property
    def chunk_bytes(self) -> float:
        """Bytes of a stored chunk."""
        return self.chunk_tokens * self.shape.bytes_per_token(self.number_bytes)

    def chunks_in(self, tier: Tier) -> float:
        """The number of chunks that fit in a tier."""
        return math.inf if tier.gigabytes is None else tier.gigabytes * 1e9 / self.chunk_bytes

    def shares(self, chunks: int) -> dict[str, float]:
        """The share of requested chunks that comes from each tier, for a corpus of `chunks` chunks."""
        held = 0.0  # chunks in this tier and all faster ones
        requested = [0.0]  # the share of requests for them
        for tier in self.tiers.values():
            held = min(float(chunks), held + self.chunks_in(tier))
            requested.append(popular(held, chunks, self.zipf))
        return {name: stop - start for name, (start, stop) in zip(self.tiers, pairwise(requested), strict=True)}


def popular(first: float, chunks: int, zipf: float) -> float:
    """The share of requests that are for the `first` most requested of `chunks` chunks."""
    return min(1.0, _harmonic(first, zipf) / _harmonic(chunks, zipf))


def _harmonic(count: float, power: float, exact: int = 1000) -> float:
    """The sum of i**-power for i from 1 to `count`.

    Term by term up to `exact`, from there on as an integral with the trapezoidal rule's correction of its ends.
    """
    if count <= exact:
        whole = math.floor(count)
        return sum(i**-power for i in range(1, whole + 1)) + (count - whole) * (whole + 1) ** -power
    exponent, span = 1 - power, math.log(count / exact)
    integral = exact**exponent * math.expm1(exponent * span) / exponent if exponent else span
    return _harmonic(exact, power) + integral + (count**-power - exact**-power) / 2
