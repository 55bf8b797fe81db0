"""A prompt's segments in memory: on the GPU, in pinned host memory, or in ordinary memory."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from ragkv.loading.segments import SegmentInMemory, SegmentKV
from ragkv.models.segment_pass import compute_segment
from ragkv.prompt import Prompt, Segment
from ragkv.store import KVStore, Layout


@dataclass
class InMemory:
    """Segments in memory, all in the same kind of memory; a prefill takes this in place of a store."""

    segments: dict[Segment, SegmentInMemory]
    url: str = "memory"
    format: str = "model"

    @classmethod
    def computed(cls, model: PreTrainedModel, prompt: Prompt) -> "InMemory":
        """Compute a prompt's segments."""
        segments = prompt.segments(model.config.bos_token_id)
        return cls({segment: SegmentInMemory(*compute_segment(model, segment)) for segment in segments})

    def open(self, layout: Layout, segment: Segment) -> SegmentKV:
        return self.segments[segment]

    def other_model(self, layout: Layout) -> str | None:
        return None

    def to(self, where: str) -> "InMemory":
        """Copy all segments; `where` is as in `SegmentInMemory.to`."""
        return InMemory({segment: states.to(where) for segment, states in self.segments.items()}, where)

    def into(self, store: KVStore, model: PreTrainedModel) -> None:
        """Write all segments to a store, as `ragkv.precompute` does."""
        layout = Layout.of(model, store.format)
        for segment, states in self.segments.items():
            store.write(layout, segment, states.layers, states.scores)
