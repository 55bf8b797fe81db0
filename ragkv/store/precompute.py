"""Offline: compute and store every segment's keys (before rotation), values and surprisal, by one forward pass each."""

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
        Further occurrences of these segments in the prompts, which cost nothing.
    written, bytes
        Segments computed now, and the size of their files; the others were in the store already.
    seconds
        How long it took.
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
    """Store the segments that the prompts need.

    Segments that are stored and intact are not computed again; damaged files are rewritten.

    Parameters
    ----------
    shard
        Do only this shard's part. Segments are assigned to shards by their keys, so each is computed by one shard, no
        matter how many prompts need it.

    Raises
    ------
    ValueError
        The model is not supported, or it cannot read a prompt.
    StoreError
        The store cannot be written to.
    """
    check_model(model)
    start = perf_counter()
    layout = Layout.of(model, store.format)
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
