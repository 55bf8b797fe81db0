"""The parts of a served prompt: what a request says in its ``kv_transfer_params``, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from ragkv.prompt import Prompt
from ragkv.selectors import Selector, get_selector

KEY = "ragkv"  # the entry of kv_transfer_params
_FIELDS = ("prefix", "chunks", "question", "selector", "options")


@dataclass(frozen=True)
class Parts:
    """How many tokens each part of a prompt has, and which of them to recompute.

    Attributes
    ----------
    prefix, chunks, question
        Numbers of tokens, in the order of the prompt; one for each chunk.
    selector
        The name of a selector, see `ragkv.selectors`.
    options
        The selector's options, such as ``{"ratio": 0.05}``.
    """

    prefix: int
    chunks: tuple[int, ...]
    question: int
    selector: str = "a3"
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, prompt: Prompt, selector: str = "a3", **options: object) -> "Parts":
        """The parts of a prompt."""
        return cls(len(prompt.prefix), tuple(map(len, prompt.chunks)), len(prompt.question), selector, options)

    @classmethod
    def read(cls, params: Mapping[str, Any], tokens: int) -> "Parts":
        """The parts that a request's ``kv_transfer_params`` name.

        Parameters
        ----------
        params
            With an entry ``"ragkv"``, as `params` writes it.
        tokens
            The number of the prompt's tokens.

        Raises
        ------
        ValueError
            An entry is unknown, missing or of another type, the parts are not as long as the prompt, or the selector
            or one of its options does not exist.
        """
        entry = params[KEY]
        if not isinstance(entry, Mapping):
            raise ValueError(f"{KEY!r} is a {type(entry).__name__}: give an object with {', '.join(_FIELDS)}")
        if unknown := sorted(set(entry) - set(_FIELDS)):
            raise ValueError(f"{KEY!r} has unknown entries ({', '.join(unknown)}): it takes {', '.join(_FIELDS)}")
        chunks = entry.get("chunks")
        if not isinstance(chunks, Sequence) or isinstance(chunks, str) or not chunks:
            raise ValueError("'chunks' must be a list with the number of tokens of each chunk")
        options = entry.get("options", {})
        if not isinstance(options, Mapping):
            raise ValueError("'options' must be an object with options of the selector")
        parts = cls(
            _count(entry.get("prefix", 0), "prefix", least=0),
            tuple(_count(chunk, f"chunks[{number}]", least=1) for number, chunk in enumerate(chunks)),
            _count(entry.get("question"), "question", least=1),
            str(entry.get("selector", "a3")),
            dict(options),
        )
        if parts.tokens != tokens:
            raise ValueError(
                f"the parts do not add up: prefix {parts.prefix} + {len(parts.chunks)} chunks {sum(parts.chunks)} + "
                f"question {parts.question} = {parts.tokens} tokens, and the prompt has {tokens}"
            )
        parts.make_selector()
        return parts

    @property
    def tokens(self) -> int:
        """The number of tokens of the whole prompt."""
        return self.prefix + sum(self.chunks) + self.question

    def params(self) -> dict[str, Any]:
        """The ``kv_transfer_params`` of a request with these parts."""
        entry = {name: getattr(self, name) for name in _FIELDS}
        return {KEY: entry | {"chunks": list(self.chunks), "options": dict(self.options)}}

    def prompt(self, ids: Sequence[int]) -> Prompt:
        """The prompt with these token ids."""
        ends = accumulate((self.prefix, *self.chunks, self.question), initial=0)
        prefix, *chunks, question = [ids[start:stop] for start, stop in pairwise(ends)]
        return Prompt(prefix, chunks, question)

    def make_selector(self) -> Selector:
        """The selector with its options.

        Raises
        ------
        ValueError
            The selector or one of its options does not exist, or a value is out of range.
        """
        return get_selector(self.selector, **self.options)


def _count(value: object, name: str, *, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name!r} is {value!r}: give a number of tokens, at least {least}")
    return value
