"""What is done ahead of a question: what each chunk is computed behind, and in which format it is stored."""

from typing import Literal

from pydantic import Field

from ragkv.parameters import Parameters
from ragkv.prompt import Prompt
from ragkv.prompt.similar import behind_similar


class Offline(Parameters):
    """How a method's chunks were computed and stored.

    Attributes
    ----------
    context
        What a chunk is computed behind: BOS alone, the prompt's prefix, or the `similar` other chunks of its document
        that are most like it (`ragkv.prompt.similar`).
    format
        How keys and values are stored: as the model computed them, or smaller (`ragkv.store.quantize`).
    """

    context: Literal["bos", "prefix", "similar"] = "bos"
    similar: int = Field(default=2, ge=1)
    format: Literal["model", "fp8", "int8", "int4"] = "model"

    def prompt(self, prompt: Prompt, bos: int | None) -> Prompt:
        """The prompt, its chunks to be computed behind this context; `bos` is the model's id, None without one."""
        if self.context == "prefix":
            return prompt.behind_prefix()
        return behind_similar(prompt, self.similar, bos) if self.context == "similar" else prompt
