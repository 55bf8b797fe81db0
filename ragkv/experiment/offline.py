"""What is done before a question is known: what each chunk is computed behind, and in which format it is stored."""

from typing import Literal

from pydantic import Field, model_validator

from ragkv.contexts import LearnedContext
from ragkv.parameters import Parameters
from ragkv.prompt import Prompt
from ragkv.prompt.similar import behind_similar


class Offline(Parameters):
    """How a method's chunks are computed and stored.

    Attributes
    ----------
    context
        What a chunk is computed behind: BOS alone, the prompt's prefix, similar chunks of its document
        (`ragkv.prompt.similar`), a learned context and BOS, or a learned context and the prefix (`ragkv.contexts`).
    similar
        How many similar chunks, if `context` is ``"similar"``.
    file
        The learned context's file, relative to the root; ``{model}`` in it stands for the model's name. None takes the
        context that comes with the package for the model.
    format
        How keys and values are stored: in the model's dtype, or quantised (`ragkv.store.quantize`).
    """

    context: Literal["bos", "prefix", "similar", "learned", "learned+prefix"] = "bos"
    similar: int = Field(default=2, ge=1)
    file: str | None = Field(default=None, repr=False)  # what the file contains counts, not where it is
    format: Literal["model", "fp8", "int8", "int4"] = "model"

    @model_validator(mode="after")
    def _check_file(self) -> "Offline":
        if self.file is not None and not self.learned:
            raise ValueError(f"a file is for a learned context, and the context is {self.context!r}")
        return self

    @property
    def learned(self) -> bool:
        """Whether chunks are computed behind a learned context."""
        return self.context in ("learned", "learned+prefix")

    def prompt(self, prompt: Prompt, bos: int | None, learned: LearnedContext | None = None) -> Prompt:
        """The prompt with its chunks to be computed behind this context.

        Parameters
        ----------
        bos
            The model's BOS id, if it has one.
        learned
            The learned context, if this is one, see `ragkv.experiment.contexts`.
        """
        if self.context in ("prefix", "learned+prefix"):
            prompt = prompt.behind_prefix()
        elif self.context == "similar":
            prompt = behind_similar(prompt, self.similar, bos)
        if not self.learned:
            return prompt
        if learned is None:
            raise ValueError("the chunks are to be computed behind a learned context: give it")
        return prompt.behind(learned)
