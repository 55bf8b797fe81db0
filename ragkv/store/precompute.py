"""Offline: compute and store every segment's keys (before rotation), values and surprisal, once each."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from time import perf_counter

from tqdm import tqdm
from transformers import PreTrainedModel

from ragkv.models import decoder
from ragkv.models.checks import check_model, check_prompt
from ragkv.models.pass_shape import batches
from ragkv.models.read_state import state_of
from ragkv.models.segment_pass import compute_segments
from ragkv.prompt import Prompt, Segment
from ragkv.shards import Shard
from ragkv.store import KVStore, Layout

WHOLE = Shard()
MOST_WORK = 1 << 42  # tokens of a shared pass times bytes of the layers' weights: a large GPU computes them in 10 ms
MOST_TOKENS = 4096  # of a shared pass, contexts and padding included: this bounds the memory that small models need


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
    batch_tokens: int | None = None,
    progress: bool = False,
) -> Precomputed:
    """Store the segments that the prompts need.

    Segments that are stored and intact are not computed again; damaged files are rewritten. On a GPU, short segments
    are computed several in one pass. What is stored of a segment does not depend on which ones these are.

    Parameters
    ----------
    batch_tokens
        The most tokens of a pass over several segments; 0 computes each in a pass of its own. By default what suits the
        model and its devices, see `most_tokens`. Results with different values agree up to rounding.
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
    most = most_tokens(model) if batch_tokens is None else batch_tokens
    checked = tqdm(distinct, "precompute", unit="segment") if progress else distinct
    missing = (segment for segment in checked if not store.check(layout, segment))
    written = size = 0
    for shape, batch in batches(missing, most):
        for segment, computed in zip(batch, compute_segments(model, batch, shape), strict=True):
            size += store.write(layout, segment, *computed)
            written += 1
    return Precomputed(len(distinct), shared, written, size, perf_counter() - start)


def most_tokens(model: PreTrainedModel) -> int:
    """The most tokens of a pass over several segments; 0 if each has to be computed in a pass of its own.

    On a CPU each has its own, as nothing waits for kernels to start there. So it is with adapters and quantised
    weights: what they compute for a token may depend on the other tokens of a pass.
    """
    on_gpus = all(device.type == "cuda" for device in decoder.devices(model))
    if not on_gpus or state_of(model).foreign:
        return 0
    weights = sum(weight.nbytes for weight in model.model.layers.parameters())
    return min(MOST_TOKENS, MOST_WORK // weights)
