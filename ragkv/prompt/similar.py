"""BM25 similarity: between a question and chunks, and between chunks that are precomputed after one another
(FusionRAG, arXiv 2601.12904)."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from unicodedata import normalize

import regex

from ragkv.extras import extra
from ragkv.prompt import Ids, Prompt

Scores = Callable[[Sequence[str]], list[float]]
# Scripts without spaces between words, and Korean, whose endings are written onto the words: each character is a word.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc]"
_WORDS = regex.compile(rf"(?V1){_UNSPACED}\p{{M}}*|[\w--{_UNSPACED}]+")
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")  # soft hyphens, joiners, variation selectors


def bm25(documents: Sequence[Sequence[str]]) -> Scores:
    """A function that takes the words of a query and returns the BM25 score of every document.

    Documents are given as lists of words, too.
    """
    if not any(documents):
        return lambda query: [0.0] * len(documents)
    with extra("rag", "BM25"), _gpu_left_alone():
        import bm25s  # imported only when needed: it starts JAX where that is installed

    retriever = bm25s.BM25()
    retriever.index(documents, show_progress=False)
    return lambda query: retriever.get_scores(list(query)).tolist() if query else [0.0] * len(documents)


@contextmanager
def _gpu_left_alone() -> Iterator[None]:
    """Keep JAX, if it starts meanwhile, from reserving three quarters of a GPU's memory."""
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    if name in os.environ:
        yield
        return
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name, None)


def words(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text, without regard to case and to the ways in which Unicode can write the same character."""
    return [_WORDS.findall(_normalised(text)) for text in texts]


def _normalised(text: str) -> str:
    """Unicode's NFKC_Casefold: é as one or two characters, ｶ and カ, ß and SS become equal."""
    if text.isascii():
        return text.lower()
    folded = normalize("NFKC", text).casefold()
    return normalize("NFKC", _INVISIBLE.sub("", folded))


def best_first(scores: Sequence[float]) -> list[int]:
    """Indices in order of score, highest first; ties keep their order."""
    return sorted(range(len(scores)), key=scores.__getitem__, reverse=True)


def behind_similar(prompt: Prompt, count: int, bos: int | None) -> Prompt:
    """The same prompt with each chunk computed after the `count` other chunks that are most similar to it."""
    start = prompt.start(bos)
    contexts = tuple(start + context for context in similar_contexts(prompt.chunks, count))
    return replace(prompt, contexts=contexts)


def similar_contexts(chunks: Sequence[Ids], count: int) -> list[Ids]:
    """For each chunk, the ids of its `count` most similar other chunks, concatenated in their given order.

    Similarity is BM25 over token ids, with the chunk itself as the query; of equally similar chunks the earlier one
    wins. Chunks that share no token with it are left out, and so are exact copies of it.

    Raises
    ------
    ValueError
        `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"{count} similar chunks: ask for at least 1")
    tokens = [[str(token) for token in chunk] for chunk in chunks]
    score = bm25(tokens)
    contexts = []
    for index, query in enumerate(tokens):
        scores = score(query)
        similar = [i for i in best_first(scores) if scores[i] > 0 and chunks[i] != chunks[index]]
        contexts.append(tuple(chain.from_iterable(chunks[i] for i in sorted(similar[:count]))))
    return contexts
