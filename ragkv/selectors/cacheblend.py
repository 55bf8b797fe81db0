"""CacheBlend: the tokens whose fresh values or keys deviate most from the stored ones (arXiv 2405.16444)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ragkv.selectors.base import ModelSizes, Observation, ScoringSelector, top


@dataclass(frozen=True)
class CacheBlend(ScoringSelector):
    """Squared difference of fresh and stored values, summed over heads and dimensions.

    Attributes
    ----------
    gap
        ``"v"`` compares values, ``"k"`` keys.
    checks
        How many layers choose, from `layer` on, each among the tokens that the one before it kept (the paper's gradual
        filtering): the first keeps nearly twice the ratio, the last one the ratio.
    """

    layer: int = 1
    gap: Literal["v", "k"] = "v"
    checks: int = 1

    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gap not in ("v", "k"):
            raise ValueError(f"gap is {self.gap!r}: choose 'v' (values) or 'k' (keys)")
        if self.checks < 1:
            raise ValueError(f"checks is {self.checks}: at least one layer must choose")

    @property
    def observes(self) -> bool:
        return True

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(range(self.layer, self.layer + self.checks))

    def operations(self, shape: ModelSizes, tokens: int, question: int) -> float:
        """Those of comparing all tokens in every layer that chooses; all but the first compare fewer."""
        return self.checks * deviation_operations(shape, tokens)

    def choose(self, seen: Observation) -> Tensor:
        to_come = self.checks - 1 - seen.choice  # choices after this one
        budget = self.budget(seen.prompt)
        keep = min(len(seen.prompt.document_span), budget * (self.checks + to_come) // self.checks)
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


def deviation_operations(shape: ModelSizes, tokens: int) -> float:
    """Floating-point operations of `deviation`: a difference, a square and a sum per number."""
    return 3 * shape.kv_heads * shape.head_dim * tokens
