"""A benchmark's examples, ready to run: prompts as token ids, with what their evaluation needs."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ragkv.benchmarks.base import Example, Task
from ragkv.experiment.profile import Profile
from ragkv.prompt import Prompt
from ragkv.prompt.chunking import chunk_document, encode_with_spans
from ragkv.prompt.templates import chat_parts
from ragkv.results.files import DamagedError, read_json, write_json


@dataclass(frozen=True)
class Item:
    """A prompt, and what its answer is scored against.

    Attributes
    ----------
    id, answers, classes, labels
        As in the benchmark's `Example`.
    prompt
        The prompt as token ids.
    question
        The text after the document, for display.
    evidence
        Indices within the document of the tokens that the answer follows from.
    """

    id: str
    prompt: Prompt
    question: str
    answers: tuple[str, ...]
    classes: tuple[str, ...]
    labels: dict[str, int | float | str]
    evidence: tuple[int, ...]


def make_item(
    tokenizer: PreTrainedTokenizerBase, example: Example, task: Task, profile: Profile, max_tokens: int | None = None
) -> Item:
    """The example as token ids in the tokenizer's chat template, its document cut into chunks as the profile says.

    Parameters
    ----------
    max_tokens
        The longest prompt; a longer one loses the middle of its document.
    """
    prefix, question = chat_parts(tokenizer, example.before, example.after, example.answer_prefix, chat=task.chat)
    longest = None if max_tokens is None else max_tokens - len(prefix) - len(question)
    document = chunk_document(
        tokenizer, example.document, by=profile.chunk_by, tokens=profile.chunk_tokens, max_tokens=longest
    )
    return Item(
        id=example.id,
        prompt=Prompt(prefix, document.chunks, question),
        question=example.after.strip(),
        answers=tuple(example.answers),
        classes=tuple(example.classes),
        labels=dict(example.labels),
        evidence=tuple(_evidence(tokenizer, example, document.kept)),
    )


def _evidence(tokenizer: PreTrainedTokenizerBase, example: Example, kept: list[int]) -> Iterable[int]:
    """The tokens that the evidence covers, as indices among the document's tokens that were kept."""
    if not example.evidence or not isinstance(example.document, str):
        return []
    spans = encode_with_spans(tokenizer, example.document)[1]
    return [
        index
        for index, token in enumerate(kept)
        if any(spans[token][0] < stop and spans[token][1] > start for start, stop in example.evidence)
    ]


def write_items(path: Path, items: list[Item], skipped: list[str]) -> None:
    """Write a task's items, and what was skipped; a file that would not change is kept."""
    content = {"skipped": skipped, "items": [asdict(item) for item in items]}
    write_json(path, content, indent=None, keep_unchanged=True, checked=True)


def read_items(path: Path) -> list[Item]:
    """The items that `write_items` wrote.

    Raises
    ------
    FileNotFoundError
        The prompts were not made yet.
    DamagedError
        The file is damaged, or another version wrote it.
    """
    content = read_json(path, "01_chunking.ipynb")
    try:
        return [_item(**fields) for fields in content["items"]]
    except (KeyError, TypeError):
        raise DamagedError(
            f"{path} was written by another version: make the prompts again, by 01_chunking.ipynb"
        ) from None


def _item(prompt: dict, answers: list[str], classes: list[str], evidence: list[int], **others: Any) -> Item:
    return Item(
        prompt=Prompt(**prompt), answers=tuple(answers), classes=tuple(classes), evidence=tuple(evidence), **others
    )
