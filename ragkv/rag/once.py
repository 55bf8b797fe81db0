"""One question, answered from documents in one call."""

from pathlib import Path
from typing import Any

from ragkv.prompt.documents import Documents
from ragkv.rag.conversation import Answer
from ragkv.rag.inputs import Model, check_question
from ragkv.rag.rag import OnToken, Rag
from ragkv.selectors import Selector
from ragkv.store import KVStore


def answer(
    question: str,
    documents: Documents,
    model: Model,
    *,
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
        The number of chunks to retrieve; None gives the model all of them.
    on_token
        As in `Rag.ask`.
    documents, model, store, selector, options
        As in `Rag`.

    Raises
    ------
    ValueError
        As `Rag` and `Rag.ask`.
    """
    check_question(question)  # before a model is loaded
    rag = Rag(documents, model, store=store, selector=selector, **options)
    return rag.ask(question, k, on_token=on_token)
