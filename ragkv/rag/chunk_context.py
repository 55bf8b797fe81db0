"""What the chunks of a user's documents are computed behind."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from ragkv.contexts import LearnedContext, find_context
from ragkv.prompt import Prompt


@dataclass(frozen=True)
class ChunkContext:
    """What chunks are computed behind, besides BOS: a learned context, the prompt's prefix, or both."""

    context: LearnedContext | None = None
    behind_prefix: bool = False

    @classmethod
    def find(
        cls, model: PreTrainedModel, context: LearnedContext | str | Path | None, behind_prefix: bool
    ) -> "ChunkContext":
        """With a learned context as `ragkv.contexts.find_context` takes it."""
        return cls(None if context is None else find_context(context, model), behind_prefix)

    def __call__(self, prompt: Prompt) -> Prompt:
        """The prompt with its chunks computed so."""
        if self.behind_prefix:
            prompt = prompt.behind_prefix()
        return prompt if self.context is None else prompt.behind(self.context)
