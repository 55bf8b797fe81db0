"""Segments that are computed when their prompt is answered and never stored: for chunks that no other prompt has."""

from collections.abc import Iterable

from transformers import PreTrainedModel

from ragkv.loading.segments import SegmentInMemory
from ragkv.models.pass_shape import batches
from ragkv.models.segment_pass import compute_segment, compute_segments
from ragkv.prompt import Segment
from ragkv.store import Layout
from ragkv.store.precompute import most_tokens


class ComputedSegments:
    """Takes the place of a `ragkv.loading.prefetch.PrefetchingStore`: it computes what that one reads.

    The segments of the last two calls of `prefetch` stay in host memory. Others are computed when they are opened.
    """

    url = "memory"
    format = "model"

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self._layout = Layout.of(model, self.format)
        self._previous: dict[Segment, SegmentInMemory] = {}
        self._current: dict[Segment, SegmentInMemory] = {}

    def prefetch(self, segments: Iterable[Segment]) -> None:
        """Compute these segments, once each, and wait for them; those that are in memory are not computed again."""
        wanted = list(dict.fromkeys(segments))
        kept = self._previous | self._current
        computed: dict[Segment, SegmentInMemory] = {}
        missing = [segment for segment in wanted if segment not in kept]
        for shape, batch in batches(missing, most_tokens(self._model)):
            for segment, states in zip(batch, compute_segments(self._model, batch, shape), strict=True):
                computed[segment] = SegmentInMemory(*states)
        if missing:
            self._previous = self._current
            self._current = {segment: computed.get(segment) or kept[segment] for segment in wanted}

    def wait(self) -> None:
        """Nothing is left to wait for."""

    def open(self, layout: Layout, segment: Segment) -> SegmentInMemory:
        """The segment, from memory if it was prefetched."""
        for kept in (self._current, self._previous):
            if segment in kept:
                return kept[segment]
        return SegmentInMemory(*compute_segment(self._model, segment))

    def other_model(self, layout: Layout) -> str | None:
        return None

    def size(self, segment: Segment) -> int:
        """Bytes of the segment's keys and values."""
        return round(len(segment.ids) * self._layout.bytes_per_token)
