"""Prompts: the positions of their parts, the segments they need, and the parts of a chat turn."""

from itertools import chain
from random import Random

import pytest
from helpers import BOS, random_ids, random_prompt
from hypothesis import given
from hypothesis import strategies as st

from ragkv import Prompt, chat_parts, split_ids
from ragkv.prompt import Segment
from ragkv.tiny.language import WORD_IDS, build_tokenizer

ids = st.lists(st.integers(0, 99), max_size=30)
some_ids = st.lists(st.integers(0, 99), min_size=1, max_size=9)


@given(ids, st.lists(some_ids, max_size=5), some_ids)
def test_spans_cover_the_ids_of_each_part(prefix, chunks, question):
    prompt = Prompt(prefix, chunks, question)
    assert prompt.ids == (*prefix, *chain(*chunks), *question)
    assert [[prompt.ids[i] for i in span] for span in prompt.chunk_spans] == chunks
    assert [prompt.ids[i] for i in prompt.document_span] == list(chain(*chunks))
    assert [prompt.ids[i] for i in prompt.question_span] == question
    everything = [*range(len(prefix)), *prompt.document_span, *prompt.question_span]
    assert everything == list(range(len(prompt.ids)))


@given(st.lists(st.integers(), max_size=50), st.integers(1, 60))
def test_windows_add_up_to_the_ids(ids, size):
    windows = split_ids(ids, size)
    assert [i for window in windows for i in window] == ids
    assert all(len(window) == size for window in windows[:-1])
    assert all(1 <= len(window) <= size for window in windows)


@pytest.mark.parametrize("size", [0, -1])
def test_a_chunk_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match=str(size)):
        split_ids([1, 2, 3], size)


def test_an_empty_chunk_is_named():
    with pytest.raises(ValueError, match="chunk 2 of 3"):
        Prompt([1], [[5], [], [6]], [7])


def test_an_empty_question_is_refused():
    with pytest.raises(ValueError, match="question is empty"):
        Prompt([1], [[5]], [])


@pytest.mark.parametrize("contexts", [[], [[1]], [[1], [1], [1]]])
def test_there_must_be_one_context_per_chunk(contexts):
    with pytest.raises(ValueError, match=f"{len(contexts)} contexts for 2 chunks"):
        Prompt([1], [[5], [6]], [7], contexts)


def test_chunks_are_computed_after_bos_if_the_prompt_begins_with_it():
    prompt = Prompt([BOS, 8], [[5, 6], [7]], [9])
    assert prompt.segments(BOS) == [Segment((BOS, 8)), Segment((5, 6), (BOS,)), Segment((7,), (BOS,))]


@pytest.mark.parametrize(("prefix", "bos"), [((8, BOS), BOS), ((BOS, 8), None), ((), BOS)])
def test_without_a_leading_bos_chunks_have_no_context(prefix, bos):
    segments = Prompt(prefix, [[5, 6], [7]], [9]).segments(bos)
    assert segments[-2:] == [Segment((5, 6)), Segment((7,))]
    assert len(segments) == 2 + bool(prefix)


def test_a_turn_marker_is_no_repeated_bos_and_chunks_are_computed_after_the_first():
    """Templates like SmolLM2's, in which the token that begins every turn is the model's BOS."""
    for prefix, question in (([BOS, 8, BOS, 9], [7]), ([BOS, 8], [7, BOS, 9])):
        prompt = Prompt(prefix, [[5, 6]], question)
        assert prompt.segments(BOS) == [Segment(tuple(prefix)), Segment((5, 6), (BOS,))]
        assert not prompt.repeats_bos(BOS)


@pytest.mark.parametrize(
    ("prefix", "chunk", "bos", "repeated"),
    [
        ([BOS, 8], [5], BOS, False),
        ([8], [5], BOS, False),
        ([BOS, BOS, 8], [5], BOS, True),
        ([BOS, 8], [5, BOS], BOS, True),
        ([BOS], [BOS, 5], BOS, True),
        ([], [5], BOS, False),
        ([BOS, BOS], [BOS], None, False),
    ],
)
def test_a_repeated_bos_is_noticed(prefix, chunk, bos, repeated):
    assert Prompt(prefix, [chunk], [9]).repeats_bos(bos) is repeated


def test_given_contexts_are_used():
    prompt = Prompt([BOS, 8], [[5], [7]], [9], contexts=[[], [BOS, 5]])
    assert prompt.segments(BOS)[1:] == [Segment((5,)), Segment((7,), (BOS, 5))]


def test_behind_prefix_changes_only_the_contexts(rng):
    prompt = random_prompt(rng)
    behind = prompt.behind_prefix()
    assert behind.contexts == (prompt.prefix,) * len(prompt.chunks)
    assert prompt.contexts is None
    assert (behind.ids, behind.chunk_spans) == (prompt.ids, prompt.chunk_spans)
    assert behind != prompt


def test_ids_can_come_from_any_iterable():
    import numpy as np

    rows = random_ids(Random(0), 4)
    assert Prompt(np.array(rows), (c for c in [np.array(rows)]), iter(rows)) == Prompt(rows, [rows], rows)


@pytest.mark.parametrize("template", [True, False])
def test_a_chat_turn_has_exactly_one_bos(template):
    tokenizer = build_tokenizer()
    if not template:
        tokenizer.chat_template = None
    prefix, question = chat_parts(tokenizer, "Read the notes below.", "Find VAR BABA?", "VAR BABA")
    assert prefix[0] == tokenizer.bos_token_id
    assert (prefix + question).count(tokenizer.bos_token_id) == 1
    said = ["Read", "the", "notes", "below", "."], ["Find", "VAR", "BABA", "?"]
    assert prefix[-5:] == [WORD_IDS[word] for word in said[0]]
    assert question[:4] == [WORD_IDS[word] for word in said[1]]
    assert question[-2:] == [WORD_IDS["VAR"], WORD_IDS["BABA"]]
    assert (WORD_IDS["<|user|>"] in prefix) is template
    assert (WORD_IDS["<|assistant|>"] in question) is template
    assert WORD_IDS["<unk>"] not in prefix + question


def test_a_tokenizer_that_adds_no_bos_gets_none():
    from tokenizers import processors

    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    prefix, question = chat_parts(tokenizer, "Read the notes below.", "Find VAR BABA?")
    assert tokenizer.bos_token_id not in prefix + question
