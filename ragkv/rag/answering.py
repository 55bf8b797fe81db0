"""One question answered from documents, in one call."""

from pathlib import Path
from typing import Any

from ragkv.prompt.documents import Documents
from ragkv.rag.conversation import Answer
from ragkv.rag.rag import Model, OnToken, Rag, check_question
from ragkv.selectors import Selector
from ragkv.store import KVStore


def answer(
    question: str,
    documents: Documents,
    *,
    model: Model = "tiny-llama",
    store: KVStore | str | Path | None = None,
    selector: Selector | str = "a3",
    k: int | None = None,
    on_token: OnToken | None = None,
    **options: Any,
) -> Answer:
    """Answer one question from documents: ``answer(question, texts).text``.

    Parameters
    ----------
    k
        How many chunks to retrieve; None gives the model all of them.
    options
        Further ones of `Rag`, whose documentation says what the others mean, too.

    Raises
    ------
    ValueError
        As `Rag` and `Rag.ask`.
    """
    check_question(question)  # an error before anything is loaded
    return Rag(documents, model, store=store, selector=selector, **options).ask(question, k, on_token=on_token)
