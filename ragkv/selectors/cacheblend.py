"""CacheBlend: the tokens whose values or keys deviate most from the stored ones (arXiv 2405.16444)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ragkv.selectors.base import Observation, ScoringSelector


@dataclass(frozen=True)
class CacheBlend(ScoringSelector):
    """Squared difference of fresh and stored values, summed over heads and dimensions.

    Attributes
    ----------
    gap
        ``"v"`` compares values, ``"k"`` keys.
    """

    layer: int = 1
    gap: Literal["v", "k"] = "v"

    observes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gap not in ("v", "k"):
            raise ValueError(f"gap is {self.gap!r}: choose 'v' (values) or 'k' (keys)")

    def scores(self, seen: Observation) -> Tensor:
        return deviation(seen, self.gap)


def deviation(seen: Observation, gap: str) -> Tensor:
    """Squared distance of fresh and stored values (or keys) per document token, ``(document,)``, in float32."""
    assert seen.keys is not None and seen.values is not None and seen.reused is not None
    stored_keys, stored_values = seen.reused()
    fresh, stored = (seen.keys, stored_keys) if gap == "k" else (seen.values, stored_values)
    difference = fresh[0, :, : stored.shape[2]].float() - stored[0].float()  # (kv_heads, document, head_dim)
    return difference.square().sum((0, 2))
