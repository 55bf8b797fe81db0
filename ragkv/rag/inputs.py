"""What is given to `ragkv.rag.Rag`, checked: the question, the model, and whether it can read the documents."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.models.checks import check_model, check_tokenizer
from ragkv.models.load import load_model
from ragkv.prompt.documents import Chunk

Model = str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase]
UNKNOWN = 0.1  # the share of unknown tokens from which on a warning is due


def check_question(question: str) -> str:
    """Return the question, or refuse one that is empty or not text."""
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"the question is {question!r}: ask something, as text")
    return question


def warn_of_unknown_text(tokenizer: PreTrainedTokenizerBase, chunks: Sequence[Chunk]) -> None:
    """Warn if the tokenizer does not know much of the text. `Rag` calls this, so the warning is about its caller."""
    ids = [token for chunk in chunks for token in chunk.ids]
    unknown = ids.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0
    if unknown > UNKNOWN * len(ids):
        warnings.warn(
            f"the model's tokenizer does not know {unknown / len(ids):.0%} of the documents' tokens: take a model that "
            "reads their language, such as smollm2 for English",
            stacklevel=3,
        )


def load(model: Model) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if isinstance(model, str | Path):
        return load_model(model)
    if not (isinstance(model, tuple) and len(model) == 2):
        raise ValueError(f"the model is of type {type(model).__name__}: give a name, a folder, or (model, tokenizer)")
    check_model(model[0])
    check_tokenizer(model[1])
    return model
