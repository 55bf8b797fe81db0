"""What a benchmark gives: examples (a document, a question, its answers) and how a prediction is scored."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ragkv.prompt import Prompt, chat_parts, encode, split_ids


@dataclass(frozen=True)
class Example:
    """One question over one document.

    Attributes
    ----------
    id
        Its name within the task.
    instruction, document, question, answer_prefix
        The prompt's texts, in the order in which they stand in it; the last one begins the model's answer.
    answers
        What counts as right; the task's metric says how.
    evidence
        Where in the document the answer follows from, as (start, stop) characters.
    """

    id: str
    instruction: str
    document: str
    question: str
    answer_prefix: str
    answers: tuple[str, ...]
    evidence: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Task:
    """A task of a benchmark.

    Attributes
    ----------
    examples
        ``examples(count, length, seed)``: that many examples with documents of about `length` tokens.
    score
        ``score(prediction, answers)`` from 0 to 1.
    """

    examples: Callable[[int, int, int], list[Example]]
    score: Callable[[str, tuple[str, ...]], float]


def build_prompt(tokenizer: PreTrainedTokenizerBase, example: Example, chunk_tokens: int) -> Prompt:
    """The example as token ids in the tokenizer's chat template, its document in windows of `chunk_tokens`."""
    prefix, question = chat_parts(tokenizer, example.instruction, example.question, example.answer_prefix)
    return Prompt(prefix, split_ids(encode(tokenizer, example.document), chunk_tokens), question)


def evidence_tokens(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[int]:
    """Indices of the document's tokens that the evidence covers."""
    offsets = tokenizer(example.document, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    return [
        index
        for index, (start, stop) in enumerate(offsets)
        if any(start < until and stop > since for since, until in example.evidence)
    ]
