"""Offline: each segment's keys (before rotation), values and surprisal, from one forward pass of its own."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from time import perf_counter

from tqdm import tqdm
from transformers import PreTrainedModel

from ragkv.models.checks import check_model, check_prompt
from ragkv.models.segment_pass import compute_segment
from ragkv.prompt import Prompt, Segment
from ragkv.shards import Shard
from ragkv.store import KVStore, Layout

WHOLE = Shard()


@dataclass(frozen=True)
class Precomputed:
    """What `precompute` did.

    Attributes
    ----------
    segments
        Distinct segments that the prompts need.
    shared
        Further occurrences of these in the prompts, which cost nothing.
    written, bytes, seconds
        Segments computed now, their size and the time it took; the others were in the store already.
    """

    segments: int
    shared: int
    written: int
    bytes: int
    seconds: float

    def __add__(self, other: "Precomputed") -> "Precomputed":
        """Two runs, or two shards of a run, as one."""
        return Precomputed(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


def precompute(
    model: PreTrainedModel,
    prompts: Iterable[Prompt],
    store: KVStore,
    *,
    shard: Shard = WHOLE,
    progress: bool = False,
) -> Precomputed:
    """Store what the prompts' chunks need. What is stored and whole is not computed again; damaged files are mended.

    Parameters
    ----------
    shard
        Do this part only. A segment belongs to one part by its key: however many prompts need it, it is computed once.

    Raises
    ------
    ValueError
        A model that is not supported, or a prompt that it cannot read.
    StoreError
        The store cannot be written to.
    """
    check_model(model)
    start, layout = perf_counter(), Layout.of(model, store.format)
    uses: Counter[Segment] = Counter()
    for prompt in prompts:
        segments = prompt.segments(model.config.bos_token_id)
        check_prompt(model, prompt, segments)
        uses.update(segments)
    distinct = [segment for segment in uses if shard.whole or shard.owns(layout.key(segment))]
    shared = sum(uses[segment] - 1 for segment in distinct)
    written = size = 0
    for segment in tqdm(distinct, "precompute", unit="segment") if progress else distinct:
        if not store.check(layout, segment):
            size += store.write(layout, segment, *compute_segment(model, segment))
            written += 1
    return Precomputed(len(distinct), shared, written, size, perf_counter() - start)
