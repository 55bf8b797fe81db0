"""How many segments are computed in one pass, decided by each segment alone.

On a GPU, starting the kernels of a pass over one short chunk takes longer than running them, so several chunks share a
pass. Kernels for other sizes may add up in another order, so that the last bits of a result depend on the size of a
pass. Therefore every pass over segments of some length has the same size, and is filled up with padding: what is
computed for a segment depends neither on the segments beside it nor on those that are stored already.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ragkv.prompt import Segment
from ragkv.prompt.prompt import Learned

LOGIT_TOKENS = 512  # whose logits, one for every word of the vocabulary, are in memory at a time in a shared pass
STEP = 16  # segments in a shared pass are padded to a multiple of this


@dataclass(frozen=True)
class PassShape:
    """The size of a pass; segments with equal ones can be computed together.

    Attributes
    ----------
    rows
        The number of segments.
    tokens
        The number of tokens of each, padding included.
    context
        The number of tokens that come before them.
    logit_rows
        The number of segments whose logits are computed at a time; `rows` is a multiple of it.
    learned
        The learned context that comes before all of these.
    """

    rows: int
    tokens: int
    context: int = 0
    logit_rows: int = 1
    learned: Learned | None = None

    @classmethod
    def alone(cls, segment: Segment) -> "PassShape":
        """The pass over one segment, without padding."""
        return cls(1, len(segment.ids), len(segment.context), learned=segment.learned)

    @classmethod
    def shared(cls, segment: Segment, most_tokens: int) -> "PassShape":
        """The pass over a segment and others like it, of up to `most_tokens` tokens; alone if two do not fit."""
        context = len(segment.context)
        tokens = -(-len(segment.ids) // STEP) * STEP
        logit_rows = max(1, LOGIT_TOKENS // tokens)
        rows = most_tokens // (context + tokens)
        if rows > logit_rows:
            rows -= rows % logit_rows
        if rows < 2:
            return cls.alone(segment)
        return cls(rows, tokens, context, min(rows, logit_rows), segment.learned)


def batches(segments: Iterable[Segment], most_tokens: int) -> Iterator[tuple[PassShape, list[Segment]]]:
    """Segments in the passes that they are computed in, each as soon as it is full; those that are not full come last.

    Parameters
    ----------
    most_tokens
        See `PassShape.shared`.
    """
    waiting: defaultdict[PassShape, list[Segment]] = defaultdict(list)
    for segment in segments:
        shape = PassShape.shared(segment, most_tokens)
        waiting[shape].append(segment)
        if len(waiting[shape]) == shape.rows:
            yield shape, waiting.pop(shape)
    yield from waiting.items()
