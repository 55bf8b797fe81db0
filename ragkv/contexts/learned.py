"""A learned context: keys and values put before a chunk when it is precomputed, and dropped afterwards.

A chunk that is computed on its own attends to nothing but itself and BOS, which is not how it is read in a prompt. A
learned context stands in for what would be there. Only a few tokens long, it is trained once per model, with the model
frozen (`ragkv.contexts.training`), and every layer has keys and values of its own, as in prefix tuning
(arXiv 2101.00190).
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ragkv.contexts.owner import owner

FORMAT = "ragkv learned context 2"


@dataclass(frozen=True, eq=False)
class LearnedContext:
    """Trained keys and values of one model; two of them are equal if their contents are.

    Attributes
    ----------
    layers
        Keys, rotated to positions ``0 .. tokens - 1``, and values: ``(layers, 2, kv_heads, tokens, head_dim)`` on the
        host; in bfloat16 if they were trained.
    model
        The model that it was trained for, see `ragkv.contexts.owner`.
    """

    layers: Tensor
    model: str

    @property
    def tokens(self) -> int:
        """How many tokens long it is."""
        return self.layers.shape[3]

    @cached_property
    def identity(self) -> str:
        """A hash of the model and every number: part of the identity of each segment computed behind it."""
        digest = hashlib.sha256(f"{FORMAT} {self.model} {tuple(self.layers.shape)}".encode())
        digest.update(self.layers.contiguous().float().numpy().tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LearnedContext) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        return f"LearnedContext({self.tokens} tokens, {self.identity[:12]})"

    def check(self, model: str, name: str | Path = "this learned context") -> None:
        """Refuse another model's context.

        Parameters
        ----------
        model
            The model that it is to be used with, see `ragkv.contexts.owner`.
        name
            What the error calls the context.

        Raises
        ------
        ValueError
            It was trained for another model.
        """
        if self.model != model:
            raise ValueError(
                f"{name} was trained for another model: train one for this model with `ragkv context train`"
            )

    def save(self, path: str | Path, **about: str) -> None:
        """Write it as a safetensors file, with `about` (how it was trained) in its metadata."""
        metadata = about | {"format": FORMAT, "model": self.model, "identity": self.identity}
        save_file({"layers": self.layers.contiguous()}, path, metadata)

    @classmethod
    def load(cls, path: str | Path, model: PreTrainedModel) -> "LearnedContext":
        """Read a context and check that it belongs to `model`.

        Raises
        ------
        ValueError
            There is no such file, it is not a learned context, it is damaged, or it is another model's.
        """
        context = cls.read(path)
        context.check(owner(model), path)
        return context

    @classmethod
    def read(cls, path: str | Path) -> "LearnedContext":
        """Read a context of any model.

        Raises
        ------
        ValueError
            There is no such file, it is not a learned context, or it is damaged.
        """
        metadata = metadata_of(path)
        with safe_open(path, "pt") as file:
            context = cls(file.get_tensor("layers"), metadata["model"])
        if context.identity != metadata["identity"]:
            raise ValueError(f"{path} is damaged: its numbers do not match its checksum. Copy or train it again")
        return context


def metadata_of(path: str | Path) -> dict[str, str]:
    """What a context's file says of itself: ``model``, ``identity``, and how it was trained.

    Raises
    ------
    ValueError
        There is no such file, or it is not a learned context.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no learned context {path}: train one with `ragkv context train`")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a learned context: {error}") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a learned context of this version of ragkv: train it again")
    return metadata
