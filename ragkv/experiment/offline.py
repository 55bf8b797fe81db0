"""What is done before a question is known: what each chunk is computed behind, and in which format it is stored."""

from typing import Literal

from pydantic import Field

from ragkv.parameters import Parameters
from ragkv.prompt import Prompt
from ragkv.prompt.similar import behind_similar


class Offline(Parameters):
    """How a method's chunks are computed and stored.

    Attributes
    ----------
    context
        What a chunk is computed behind: BOS alone, the prompt's prefix, or similar chunks of its document
        (`ragkv.prompt.similar`).
    similar
        How many similar chunks, if `context` is ``"similar"``.
    format
        How keys and values are stored: in the model's dtype, or quantised (`ragkv.store.quantize`).
    """

    context: Literal["bos", "prefix", "similar"] = "bos"
    similar: int = Field(default=2, ge=1)
    format: Literal["model", "fp8", "int8", "int4"] = "model"

    def prompt(self, prompt: Prompt, bos: int | None) -> Prompt:
        """The prompt with its chunks to be computed behind this context; `bos` is the model's BOS id, if it has one."""
        if self.context == "prefix":
            return prompt.behind_prefix()
        if self.context == "similar":
            return behind_similar(prompt, self.similar, bos)
        return prompt
