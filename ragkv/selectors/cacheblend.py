"""CacheBlend: the tokens whose values or keys deviate most from the stored ones (arXiv 2405.16444)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ragkv.selectors.base import Observation, ScoringSelector, top


@dataclass(frozen=True)
class CacheBlend(ScoringSelector):
    """Squared difference of fresh and stored values, summed over heads and dimensions.

    Attributes
    ----------
    gap
        ``"v"`` compares values, ``"k"`` keys.
    checks
        So many layers, from `layer` on, choose one after the other, each among those that are left (the paper's
        gradual filtering): the first keeps nearly twice the ratio, the last one the ratio.
    """

    layer: int = 1
    gap: Literal["v", "k"] = "v"
    checks: int = 1

    observes: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gap not in ("v", "k"):
            raise ValueError(f"gap is {self.gap!r}: choose 'v' (values) or 'k' (keys)")
        if self.checks < 1:
            raise ValueError(f"checks is {self.checks}: at least one layer must choose")

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(range(self.layer, self.layer + self.checks))

    def choose(self, seen: Observation) -> Tensor:
        left = self.checks - 1 - seen.choice  # choices that are still to come
        budget = self.budget(seen.prompt)
        keep = min(len(seen.prompt.document_span), budget * (self.checks + left) // self.checks)
        best = top(self.scores(seen), keep)
        return seen.candidates.to(best.device)[best]

    def scores(self, seen: Observation) -> Tensor:
        return deviation(seen, self.gap)


def deviation(seen: Observation, gap: str) -> Tensor:
    """Squared distance of fresh and stored values (or keys) per candidate, ``(candidates,)``, in float32."""
    assert seen.keys is not None and seen.values is not None and seen.reused is not None
    stored_keys, stored_values = seen.reused()
    fresh, stored = (seen.keys, stored_keys) if gap == "k" else (seen.values, stored_values)
    stored = stored[0, :, seen.candidates.to(stored.device)]  # (kv_heads, candidates, head_dim)
    difference = fresh[0, :, : stored.shape[1]].float() - stored.float()
    return difference.square().sum((0, 2))
