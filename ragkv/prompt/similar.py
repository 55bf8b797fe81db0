"""What is most like a text, by BM25: chunks like a question, or like the chunk that is precomputed behind them
(FusionRAG, arXiv 2601.12904)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

from ragkv.extras import extra
from ragkv.prompt import Ids, Prompt

Scores = Callable[[Sequence[str]], list[float]]
_WORDS = r"(?u)[\u3040-\u30ff\u3400-\u9fff]|\w+"  # Chinese and Japanese have no spaces: each character is a word


def bm25(documents: Sequence[Sequence[str]]) -> Scores:
    """A function from a query's words to the BM25 score of every document, all given as words."""
    if not any(documents):
        return lambda query: [0.0] * len(documents)
    with extra("rag", "BM25"):
        import bm25s  # not before it is needed: beside JAX it takes most of a GPU's memory

    retriever = bm25s.BM25()
    retriever.index(documents, show_progress=False)
    return lambda query: retriever.get_scores(list(query)).tolist() if query else [0.0] * len(documents)


def words(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text, in lower case."""
    with extra("rag", "BM25"):
        import bm25s

    return bm25s.tokenize(texts, stopwords=[], token_pattern=_WORDS, return_ids=False, show_progress=False)


def best_first(scores: Sequence[float]) -> list[int]:
    """Indices by score, the highest first; of equal ones the earlier."""
    return sorted(range(len(scores)), key=scores.__getitem__, reverse=True)  # stable


def behind_similar(prompt: Prompt, count: int, bos: int | None) -> Prompt:
    """The same prompt, each chunk to be computed behind the `count` other chunks of it that are most like it."""
    start = prompt.start(bos)
    return replace(prompt, contexts=tuple(start + context for context in similar_contexts(prompt.chunks, count)))


def similar_contexts(chunks: Sequence[Ids], count: int) -> list[Ids]:
    """For each chunk, its `count` nearest other chunks side by side, in the order in which they are given.

    Similarity is BM25 over token ids, the chunk itself being the query; of equal ones the earlier is nearer. Chunks
    that share no token with it are left out, and so are its own repetitions.

    Raises
    ------
    ValueError
        `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"{count} similar chunks: ask for at least 1")
    tokens = [[str(token) for token in chunk] for chunk in chunks]
    scored, contexts = bm25(tokens), []
    for index, query in enumerate(tokens):
        scores = scored(query)
        nearest = [i for i in best_first(scores) if scores[i] > 0 and chunks[i] != chunks[index]][:count]
        contexts.append(tuple(chain.from_iterable(chunks[i] for i in sorted(nearest))))
    return contexts
