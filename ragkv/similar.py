"""The chunks most like each chunk, by BM25: what it is worth being precomputed behind (FusionRAG, arXiv 2601.12904)."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import bm25s

from ragkv.prompt import Ids, Prompt


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
    words = [[str(token) for token in chunk] for chunk in chunks]
    if len(words) < 2:
        return [()] * len(words)
    retriever = bm25s.BM25()
    retriever.index(words, show_progress=False)
    contexts = []
    for index, query in enumerate(words):
        scores = retriever.get_scores(query)
        order = sorted(range(len(chunks)), key=scores.__getitem__, reverse=True)  # stable: of equal ones the earlier
        nearest = [i for i in order if scores[i] > 0 and chunks[i] != chunks[index]][:count]
        contexts.append(tuple(chain.from_iterable(chunks[i] for i in sorted(nearest))))
    return contexts
