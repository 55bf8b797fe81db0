"""Chunks: concatenated they are the document's ids, none is too long, and they end at sentence or paragraph ends."""

from functools import lru_cache
from itertools import pairwise
from types import SimpleNamespace

import pytest
from helpers import PROSE, byte_level_bpe
from hypothesis import example, given
from hypothesis import strategies as st

from ragkv.prompt.chunking import chunk_document, head_tail
from ragkv.prompt.encoding import encode
from ragkv.tiny.language import build_tokenizer

UNITS = ("tokens", "sentences", "paragraphs")


TOKENIZERS = {"bpe": byte_level_bpe, "words": lru_cache(build_tokenizer)}
pieces = st.sampled_from(
    ["One.", "two", "three! ", "Four?", " ", "\n", "\n\n", " \n \n", "3.5", 'he said "no."', "(yes.) ", "...",
     "Mr. ", "\N{RIGHT DOUBLE QUOTATION MARK}", "\N{IDEOGRAPHIC FULL STOP}", "\u732b", "\N{GRINNING FACE}",
     "e\u0301", "\t", "\r\n"]
)  # fmt: skip
texts = st.one_of(st.text(max_size=80), st.lists(pieces, max_size=40).map("".join))
sizes = st.integers(1, 20)


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def joined(chunks):
    return [i for chunk in chunks for i in chunk]


def units(kind):
    """Texts as lists of plain units; each but the last is followed by white space."""
    words = st.lists(st.sampled_from("the boat bell rang quiet tide lantern".split()), min_size=1, max_size=9)
    sentence = st.tuples(words, st.sampled_from(".!?")).map(lambda parts: " ".join(parts[0]) + parts[1])
    paragraph = st.lists(sentence, min_size=1, max_size=3).map(" ".join)
    gap = {"sentences": " ", "paragraphs": "\n\n"}[kind]
    unit = {"sentences": sentence, "paragraphs": paragraph}[kind]
    return st.lists(unit, min_size=1, max_size=9).map(lambda some: [*(s + gap for s in some[:-1]), some[-1]])


@pytest.mark.parametrize("by", UNITS)
@given(text=texts, size=sizes)
@example(text="", size=1)
@example(text="\n", size=1)
@example(text="one two three. four", size=1)
def test_joined_chunks_are_the_documents_ids(tokenizer, by, text, size):
    chunked = chunk_document(tokenizer, text, by=by, tokens=size)
    assert joined(chunked.chunks) == encode(tokenizer, text)
    assert chunked.kept == list(range(len(encode(tokenizer, text))))
    assert all(1 <= len(chunk) <= size for chunk in chunked.chunks)


@given(text=texts, size=sizes)
def test_all_windows_but_the_last_are_full(tokenizer, text, size):
    chunks = chunk_document(tokenizer, text, by="tokens", tokens=size).chunks
    assert all(len(chunk) == size for chunk in chunks[:-1])


@pytest.mark.parametrize("by", ["sentences", "paragraphs"])
@given(data=st.data(), size=st.integers(1, 40))
def test_as_many_whole_units_as_fit_are_packed_into_a_chunk(tokenizer, by, data, size):
    parts = data.draw(units(by))
    # a space before a word is part of the word's token, so tokens are counted within the whole text
    ends = [len(encode(tokenizer, "".join(parts[:n]).rstrip(" "))) for n in range(len(parts) + 1)]
    lengths = [stop - start for start, stop in pairwise(ends)]
    size = max(size, *lengths)
    expected = [lengths[0]]
    for length in lengths[1:]:
        if expected[-1] + length > size:
            expected.append(length)
        else:
            expected[-1] += length
    chunks = chunk_document(tokenizer, "".join(parts), by=by, tokens=size).chunks
    assert [len(chunk) for chunk in chunks] == expected


@given(parts=units("sentences"), size=sizes)
def test_sentence_chunks_end_at_sentence_ends(tokenizer, parts, size):
    chunks = chunk_document(tokenizer, "".join(parts), by="sentences", tokens=size).chunks
    for i, chunk in enumerate(chunks):
        if tokenizer.decode(chunk).rstrip()[-1] not in ".!?":
            assert_inside_a_long_unit(tokenizer, parts, chunks, i, size)


@given(parts=units("paragraphs"), size=sizes)
def test_paragraph_chunks_end_at_paragraph_ends(tokenizer, parts, size):
    chunks = chunk_document(tokenizer, "".join(parts), by="paragraphs", tokens=size).chunks
    paragraphs = {len(encode(tokenizer, "".join(parts[: n + 1]))) for n in range(len(parts))}
    done = 0
    for i, chunk in enumerate(chunks):
        done += len(chunk)
        if done not in paragraphs:
            assert_inside_a_long_unit(tokenizer, parts, chunks, i, size)


def assert_inside_a_long_unit(tokenizer, parts, chunks, number, size):
    """The chunk ends inside a unit that is longer than the chunk size."""
    done, inside = len(joined(chunks[: number + 1])), 0
    for n in range(len(parts)):
        start, inside = inside, len(encode(tokenizer, "".join(parts[: n + 1]).rstrip(" ")))
        if done < inside:
            assert inside - start > size
            return
    raise AssertionError("the chunk does not end within a unit")


def test_sentences_of_a_long_paragraph_stay_whole(tokenizer):
    long = " ".join(["the boat rang."] * 6)
    size = 2 * len(encode(tokenizer, " the boat rang.")) + 1
    chunks = chunk_document(tokenizer, f"The tide.\n\n{long}\n\nThe bell.", by="paragraphs", tokens=size).chunks
    assert all(tokenizer.decode(chunk).rstrip()[-1] == "." for chunk in chunks)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ('He said "no." Then he left', 'He said "no."'),
        ("One (or two.) Then more", "One (or two.)"),
        ("What?! Then more", "What?!"),
        ("At 3.5 knots. Then more", "At 3.5 knots."),
        ("A heading\nThen more", "A heading"),
        ("\u732b\N{IDEOGRAPHIC FULL STOP}\u732b", "\u732b\N{IDEOGRAPHIC FULL STOP}"),
    ],
)
def test_where_a_sentence_ends(text, first):
    bpe = byte_level_bpe()
    size = max(len(encode(bpe, first + "\n")), len(encode(bpe, text)) - 1)
    chunks = chunk_document(bpe, text, by="sentences", tokens=size).chunks
    assert bpe.decode(chunks[0]).rstrip() == first


@given(passages=st.lists(texts, max_size=5), size=sizes, by=st.sampled_from(UNITS))
def test_passages_come_as_they_are(tokenizer, passages, size, by):
    chunks = chunk_document(tokenizer, passages, by=by, tokens=size).chunks
    assert chunks == [tuple(ids) for ids in (encode(tokenizer, p) for p in passages) if ids]


@given(length=st.integers(0, 30), most=st.none() | st.integers(1, 35))
def test_head_and_tail_are_kept(length, most):
    everything = list(range(length))
    if most is None or length <= most:
        assert head_tail(length, most) == everything
        return
    kept = head_tail(length, most)
    tail = most // 2
    assert kept == everything[: most - tail] + everything[length - tail :]
    assert len(kept) == most


@pytest.mark.parametrize("most", [0, -3])
def test_no_room_for_the_document_is_an_error(most):
    with pytest.raises(ValueError, match=f"no room for the document.* {most} tokens"):
        chunk_document(byte_level_bpe(), PROSE, max_tokens=most)


@pytest.mark.parametrize("by", UNITS)
@given(text=texts, size=sizes, most=st.integers(1, 60))
@example(text=PROSE, size=20, most=30)
@example(text=PROSE, size=20, most=1)
def test_a_truncated_document_loses_its_middle(tokenizer, by, text, size, most):
    ids = encode(tokenizer, text)
    kept = head_tail(len(ids), most)
    chunked = chunk_document(tokenizer, text, by=by, tokens=size, max_tokens=most)
    assert chunked.kept == kept
    assert joined(chunked.chunks) == [ids[i] for i in kept]
    assert all(1 <= len(chunk) <= size for chunk in chunked.chunks)


@pytest.mark.parametrize("by", ["sentences", "paragraphs"])
@given(text=texts, size=sizes, most=st.integers(2, 60))
@example(text=PROSE, size=40, most=30)
def test_no_chunk_spans_the_cut(tokenizer, by, text, size, most):
    chunks = chunk_document(tokenizer, text, by=by, tokens=size, max_tokens=most).chunks
    if len(encode(tokenizer, text)) > most:
        assert most - most // 2 in ends_of(chunks)


@given(passages=st.lists(texts, min_size=1, max_size=5), most=st.integers(1, 60))
def test_truncated_passages_are_not_merged(tokenizer, passages, most):
    owners = [number for number, passage in enumerate(passages) for _ in encode(tokenizer, passage)]
    ids = [i for passage in passages for i in encode(tokenizer, passage)]
    chunked = chunk_document(tokenizer, passages, max_tokens=most)
    kept = head_tail(len(ids), most)
    assert joined(chunked.chunks) == [ids[i] for i in kept]
    bounds = {n for n in range(1, len(kept)) if owners[kept[n]] != owners[kept[n - 1]]}
    if len(ids) > most:
        bounds |= {most - most // 2}
    assert ends_of(chunked.chunks) == bounds | ({len(kept)} if kept else set())


def ends_of(chunks):
    return {len(joined(chunks[: n + 1])) for n in range(len(chunks))}


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize("document", [PROSE, [PROSE]])
def test_a_chunk_size_below_one_is_refused(document, size):
    with pytest.raises(ValueError, match=f"chunk size of {size} tokens"):
        chunk_document(byte_level_bpe(), document, tokens=size)


@pytest.mark.parametrize("by", ["sentences", "paragraphs"])
def test_a_tokenizer_without_offsets_can_only_cut_by_tokens(by):
    ids = [5, 6, 7]
    slow = SimpleNamespace(is_fast=False)
    with pytest.raises(ValueError, match="use a fast one, or chunk_by='tokens'"):
        chunk_document(slow, "Some text.", by=by)

    class Slow:
        is_fast = False
        unk_token_id = None

        def __call__(self, text, **options):
            return SimpleNamespace(input_ids=ids)

        def decode(self, ids):
            return ""

    assert chunk_document(Slow(), "Some text.", by="tokens", tokens=2).chunks == [(5, 6), (7,)]
