"""Whether loading or computing bounds a fused prefill, and at which ratio that turns (after CacheBlend's controller,
arXiv 2405.16444, section 6)."""

from dataclasses import dataclass, fields, replace

from ragkv.costs.prefill import fused
from ragkv.costs.shape import Shape
from ragkv.selectors import Selector


@dataclass(frozen=True)
class Balance:
    """What a prefill takes in each of its two parts, which run side by side.

    Attributes
    ----------
    loading, computing
        Seconds.
    turning
        The ratio up to which loading takes longer: recomputing less than that saves no time. 0 where computing is
        always longer, 1 where loading is.
    """

    loading: float
    computing: float
    turning: float

    @property
    def bound(self) -> str:
        """``"loading"`` or ``"computing"``, whichever takes longer."""
        return "loading" if self.loading > self.computing else "computing"


def balance(
    shape: Shape, selector: Selector, tokens: int, *, tflops: float, gbs: float, number_size: float = 2
) -> Balance:
    """Weigh loading against computing for a prompt of `tokens` tokens.

    Parameters
    ----------
    tflops, gbs
        Speeds measured on the machine: 1e12 operations a second in matrix products, 1e9 bytes a second from where the
        keys and values lie to the GPU (``python -m ragkv.bench`` prints both).
    number_size
        Bytes of a stored number, see `ragkv.store.quantize.number_size`.
    """
    first = selector.layer + (selector.observes and not selector.compares)  # the layers before are computed
    loaded = max(0.0, 1 - first / shape.layers) if selector.reuses else 0.0
    loading = loaded * tokens * shape.bytes_per_token(number_size) / (gbs * 1e9)

    def computing(ratio: float) -> float:
        return fused(shape, replace(selector, ratio=ratio), tokens) / (tflops * 1e12)

    given = fused(shape, selector, tokens) / (tflops * 1e12)
    if not next(field.init for field in fields(selector) if field.name == "ratio"):  # one ratio only
        return Balance(loading, given, float(given < loading))
    low, high = 0.0, 1.0
    for _ in range(40):  # more is recomputed, more is computed
        middle = (low + high) / 2
        low, high = (middle, high) if computing(middle) < loading else (low, middle)
    return Balance(loading, given, low)
