"""Which chunks a question is answered from: BM25 over the documents' chunks, or a retriever of the user's."""

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from ragkv.prompt.documents import Chunk, whole_chunk
from ragkv.prompt.similar import best_first, bm25, words

Retriever = Callable[[str, int], Iterable[int | str]]


class VectorStore(Protocol):
    """A vector store as LangChain has them: its documents carry their text in ``page_content``."""

    def similarity_search(self, query: str, k: int) -> Iterable[Any]: ...


def by_words(chunks: Sequence[Chunk]) -> Retriever:
    """A retriever that ranks chunks by BM25 over their words."""
    scores = bm25(words([chunk.text for chunk in chunks]))

    def retrieve(question: str, k: int) -> list[int]:
        return best_first(scores(words([question])[0]))[:k]

    return retrieve


def as_retriever(retriever: Retriever | VectorStore) -> Retriever:
    """A function of (question, k) from a retriever of any kind.

    Raises
    ------
    ValueError
        It is neither a function nor a vector store.
    """
    search = getattr(retriever, "similarity_search", None)
    if callable(search):
        return lambda question, k: [document.page_content for document in search(question, k=k)]
    if not callable(retriever):
        raise ValueError(
            f"the retriever is of type {type(retriever).__name__}: give a function of (question, k) that returns "
            "indices of chunks or texts, the best first, or a vector store with similarity_search"
        )
    return retriever


def as_chunk(item: int | str | Chunk, chunks: Sequence[Chunk], tokenizer: PreTrainedTokenizerBase) -> Chunk:
    """One of these chunks by its index, or a chunk made of a text that comes from elsewhere.

    Raises
    ------
    ValueError
        There is no such chunk, or the item is not text.
    """
    if isinstance(item, Chunk):
        return item
    if isinstance(item, Integral):
        if not 0 <= item < len(chunks):
            raise ValueError(f"the retriever gave chunk {item}: there are {len(chunks)} chunks, counted from 0")
        return chunks[int(item)]
    if not isinstance(item, str) or not item.strip():
        raise ValueError(f"a chunk is {item!r}: give its text")
    return whole_chunk(tokenizer, item)


def in_order(ranked: list[Chunk], chunks: Sequence[Chunk]) -> list[Chunk]:
    """Ranked chunks in the documents' order; if one comes from elsewhere, all of them as they are."""
    place = {id(chunk): number for number, chunk in enumerate(chunks)}
    if any(id(chunk) not in place for chunk in ranked):
        return ranked
    return sorted(ranked, key=lambda chunk: place[id(chunk)])
