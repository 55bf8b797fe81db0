"""Chunks computed after their most similar ones: BM25 compared with its formula, and the resulting contexts."""

import math
from itertools import chain, combinations

import pytest
import torch
from helpers import BOS, fuse, random_prompt, relative_error
from hypothesis import given
from hypothesis import strategies as st

from ragkv.prompt import Prompt
from ragkv.prompt.similar import behind_similar, similar_contexts


def bm25(query, chunk, chunks, k1=1.5, b=0.75):
    """Lucene's form of BM25, over token ids; every occurrence in the query counts."""
    mean, total = sum(map(len, chunks)) / len(chunks), 0.0
    for token in query:
        containing = sum(token in other for other in chunks)
        idf = math.log(1 + (len(chunks) - containing + 0.5) / (containing + 0.5))
        count = chunk.count(token)
        total += idf * count / (count + k1 * (1 - b + b * len(chunk) / mean))
    return total


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6).map(tuple), max_size=6), st.integers(1, 4))
def test_the_most_similar_chunks_by_the_formula_in_their_given_order(chunks, count):
    """Each context is some chunks side by side, in their order, and no choice of as many scores more."""
    for index, context in enumerate(similar_contexts(chunks, count)):
        scores = {i: bm25(chunks[index], c, chunks) for i, c in enumerate(chunks) if c != chunks[index]}
        scores = {i: score for i, score in scores.items() if score > 1e-6}  # of those that share a token
        best = sorted(scores.values(), reverse=True)[:count]
        # Rounding may break ties either way, and several choices may give the same tokens: one of them must be as good.
        choices = combinations(sorted(scores), len(best))
        taken = [choice for choice in choices if tuple(chain.from_iterable(chunks[i] for i in choice)) == context]
        totals = [sum(scores[i] for i in choice) for choice in taken]
        assert totals and max(totals) == pytest.approx(sum(best), rel=1e-4)


def test_a_chunk_computed_after_all_earlier_ones_is_exact(model, rng):
    """If the prefix is BOS alone, a second chunk that is computed after BOS and the first is at its true positions."""
    prompt = random_prompt(rng, chunks=(9, 9), prefix=1)
    shared = Prompt(prompt.prefix, (prompt.chunks[0], prompt.chunks[0][:5] + prompt.chunks[1][:4]), prompt.question)
    behind = behind_similar(shared, 1, model.config.bos_token_id)
    assert behind.contexts[1] == (BOS, *shared.chunks[0])
    last = Prompt(behind.prefix, behind.chunks, behind.question, [(BOS,), behind.contexts[1]])
    assert relative_error(fuse(model, last, "full_reuse").logits, fuse(model, last, "full_prefill").logits) <= 1e-4
    assert torch.isfinite(fuse(model, behind, "a3", ratio=0.2).logits).all()


def test_contexts_do_not_change_the_prompt(rng):
    prompt = random_prompt(rng, chunks=(30, 30, 30))
    behind = behind_similar(prompt, 2, BOS)
    assert behind.ids == prompt.ids
    assert all(context[:1] == (BOS,) for context in behind.contexts)
    assert behind_similar(random_prompt(rng, chunks=()), 2, BOS).contexts == ()
    assert behind_similar(random_prompt(rng, chunks=(5,)), 2, BOS).contexts == ((BOS,),)
    with pytest.raises(ValueError, match="0 similar chunks"):
        behind_similar(prompt, 0, BOS)
