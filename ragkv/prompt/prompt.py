"""A prompt as token ids, ``prefix | chunk 1 | ... | chunk k | question``, and the positions of its parts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Ids = tuple[int, ...]


class Learned(Protocol):
    """A learned context, see `ragkv.contexts`. Two are equal, and have one hash, if their contents are the same."""

    @property
    def layers(self) -> Tensor:
        """Rotated keys, and values, ``(layers, 2, kv_heads, tokens, head_dim)``."""

    @property
    def tokens(self) -> int:
        """Its length."""

    @property
    def identity(self) -> str:
        """A hash of its contents."""


@dataclass(frozen=True)
class Segment:
    """Tokens whose keys and values are computed together, after a context that is then dropped.

    Attributes
    ----------
    ids
        The segment's token ids.
    context
        Token ids that precede the segment while it is computed: none, BOS, the prompt's prefix, or other chunks.
        Their own keys and values are not kept.
    learned
        A learned context that precedes both, if there is one.
    """

    ids: Ids
    context: Ids = ()
    learned: Learned | None = None

    @property
    def computed_tokens(self) -> int:
        """How many positions computing the segment takes."""
        learned = 0 if self.learned is None else self.learned.tokens
        return learned + len(self.context) + len(self.ids)


@dataclass(frozen=True)
class Prompt:
    """A retrieval-augmented prompt.

    Attributes
    ----------
    prefix
        Ids before the document: BOS, the chat template's header, the instruction. May be empty.
    chunks
        Ids of each retrieved chunk, in prompt order.
    question
        Ids after the document: the question, the template's assistant header, the beginning of the answer.
    contexts
        The context that each chunk is computed after. ``None`` means BOS if the prompt begins with one, else nothing.
    learned
        A learned context that all chunks are computed after as well, see `behind`.

    Raises
    ------
    ValueError
        A chunk or the question has no tokens, or `contexts` does not have one entry per chunk.
    """

    prefix: Ids
    chunks: tuple[Ids, ...]
    question: Ids
    contexts: tuple[Ids, ...] | None = None
    learned: Learned | None = None

    def __init__(
        self,
        prefix: Iterable[int],
        chunks: Iterable[Iterable[int]],
        question: Iterable[int],
        contexts: Iterable[Iterable[int]] | None = None,
        learned: Learned | None = None,
    ):
        set_field = object.__setattr__
        set_field(self, "prefix", _ids(prefix))
        set_field(self, "chunks", tuple(map(_ids, chunks)))
        set_field(self, "question", _ids(question))
        set_field(self, "contexts", None if contexts is None else tuple(map(_ids, contexts)))
        set_field(self, "learned", learned)
        if not self.question:
            raise ValueError("the question is empty: the prompt must end with at least one token to answer from")
        for number, chunk in enumerate(self.chunks, 1):
            if not chunk:
                raise ValueError(f"chunk {number} of {len(self.chunks)} is empty: leave empty chunks out")
        if self.contexts is not None and len(self.contexts) != len(self.chunks):
            raise ValueError(
                f"{len(self.contexts)} contexts for {len(self.chunks)} chunks: give one per chunk, or none at all"
            )

    @cached_property
    def ids(self) -> Ids:
        """All token ids in order."""
        return self.prefix + tuple(chain.from_iterable(self.chunks)) + self.question

    @cached_property
    def tensor(self) -> Tensor:
        """All token ids in order, ``(tokens,)``, int64 on the CPU."""
        return torch.from_numpy(np.fromiter(self.ids, np.int64, len(self.ids)))

    @cached_property
    def chunk_spans(self) -> list[range]:
        """The positions of each chunk."""
        ends = accumulate(map(len, self.chunks), initial=len(self.prefix))
        return [range(start, stop) for start, stop in pairwise(ends)]

    @property
    def document_span(self) -> range:
        """The positions of all chunks."""
        return range(len(self.prefix), len(self.ids) - len(self.question))

    @property
    def question_span(self) -> range:
        """The positions of the question."""
        return range(len(self.ids) - len(self.question), len(self.ids))

    def behind_prefix(self) -> "Prompt":
        """The same prompt with its chunks computed after the whole prefix instead of after BOS alone."""
        return replace(self, contexts=(self.prefix,) * len(self.chunks))

    def behind(self, learned: Learned) -> "Prompt":
        """The same prompt with its chunks computed after a learned context and what they are computed after already.

        So ``prompt.behind(context)`` puts the context and BOS before each chunk, and
        ``prompt.behind_prefix().behind(context)`` the context and the prefix.
        """
        return replace(self, learned=learned)

    def start(self, bos: int | None) -> Ids:
        """``(bos,)`` if the prompt begins with BOS, else ``()``.

        Attention of every token falls back on the very first one, so a chunk that is computed on its own needs it, too.
        That holds whether BOS was added once, or marks the beginning of each turn as in SmolLM2's chat template.

        Parameters
        ----------
        bos
            The model's BOS id, or None if it has none.
        """
        return self.prefix[:1] if bos is not None and self.prefix[:1] == (bos,) else ()

    def repeats_bos(self, bos: int | None) -> bool:
        """True if BOS was added more than once: twice at the beginning, or within a chunk.

        Where a chat template begins every turn with BOS, as SmolLM2's does, the later ones mark turns and do not count.
        """
        return bos is not None and (self.ids[:2] == (bos, bos) or any(bos in chunk for chunk in self.chunks))

    def segments(self, bos: int | None) -> list[Segment]:
        """The segments to precompute: the prefix, unless it is empty, and each chunk after its context.

        Parameters
        ----------
        bos
            The model's BOS id, or None if it has none.
        """
        contexts = self.contexts
        if contexts is None:
            contexts = (self.start(bos),) * len(self.chunks)
        chunks = [Segment(ids, context, self.learned) for ids, context in zip(self.chunks, contexts, strict=True)]
        return [Segment(self.prefix), *chunks] if self.prefix else chunks


def _ids(ids: Iterable[int]) -> Ids:
    return tuple(map(int, ids))


def split_ids(ids: Sequence[int], size: int) -> list[Ids]:
    """Cut ids into windows of `size` tokens; the last window may be shorter.

    Raises
    ------
    ValueError
        `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"a chunk size of {size} tokens: it must be at least 1")
    return [tuple(ids[start : start + size]) for start in range(0, len(ids), size)]
