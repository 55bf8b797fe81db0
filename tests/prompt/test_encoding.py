"""Parts of a prompt, encoded one by one, add up to the whole, for tokenizers of every kind."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, LINE_BREAK, LOSSLESS, PLAIN, fast, stripping_unigram

from ragkv.prompt.encoding import encode, encode_with_spans
from ragkv.prompt.templates import chat_parts

text = st.one_of(
    st.text(max_size=20),
    st.lists(st.sampled_from(["\n", "\n\n", " ", "  ", "the", "boat", ".", "..", "0", "12", "(", "猫", "é"])).map(
        "".join
    ),
)


def plainly(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=60)
@given(first=text, second=text)
@example("One.", "\n\nTwo.")
@example("One.", "\nTwo?")
@example("Read this. ", "the boat")
@example("Read this:\n", "The boat")
@example("a", "")
@example("0", "00")
@example(".", "...")
def test_two_parts_decode_to_the_whole(name, first, second):
    tokenizer = KINDS[name]()
    first = "Go" + first  # a tokenizer may insert a space before the whole prompt
    ids = plainly(tokenizer, first) + encode(tokenizer, second)
    assert tokenizer.decode(ids) == tokenizer.decode(plainly(tokenizer, first + second))


@pytest.mark.parametrize("name", ["sentencepiece bpe", "sentencepiece unigram"])
@pytest.mark.parametrize(
    ("first", "second"),
    [("Read this:\n", "The boat came."), ("Read this. ", "the boat"), ("the tide", " turned"), ("One.", "\nTwo?"),
     ("The keeper said", " (no)"), ("the har", "bour"), ("it was", ". Nobody knew"), ("home", ".")],
)  # fmt: skip
def test_parts_decode_to_the_whole_without_byte_fallback(name, first, second):
    tokenizer = KINDS[name]()
    ids = plainly(tokenizer, first) + encode(tokenizer, second)
    assert tokenizer.decode(ids) == tokenizer.decode(plainly(tokenizer, first + second))


@pytest.mark.parametrize("name", KINDS)
def test_a_chat_turn_decodes_to_the_whole(name):
    tokenizer = KINDS[name]()
    before, document, after = "Read this: ", "the boat came home.", "\nWho saw the boat?"
    prefix, question = chat_parts(tokenizer, before, after, chat=False)
    start = [tokenizer.bos_token_id] if name == "embedded models" else []
    whole = start + plainly(tokenizer, before + document + after)
    assert tokenizer.decode(prefix + encode(tokenizer, document) + question) == tokenizer.decode(whole)


@pytest.mark.parametrize("name", PLAIN)
@given(text=text)
def test_tokenizers_that_insert_nothing_encode_parts_like_whole_texts(name, text):
    """Stored segments are named after these ids, so they must never change."""
    tokenizer = KINDS[name]()
    assert encode(tokenizer, text) == tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


@pytest.mark.parametrize("name", LINE_BREAK)
@given(text=text)
def test_tokenizers_like_llama_2_encode_parts_as_after_a_line_break(name, text):
    """Stored segments are named after these ids, so they must never change."""
    tokenizer = KINDS[name]()
    space, line_break, *ids = plainly(tokenizer, "\n" + text)
    assert tokenizer.convert_ids_to_tokens([space, line_break]) == ["▁", "<0x0A>"]
    assert encode(tokenizer, text) == ids


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=60)
@given(text=text)
def test_spans_cover_the_text_and_ids_do_not_depend_on_them(name, text):
    tokenizer = KINDS[name]()
    ids, spans = encode_with_spans(tokenizer, text)
    assert ids == encode(tokenizer, text)
    assert len(spans) == len(ids)
    covered = {place for start, stop in spans for place in range(start, stop)}
    assert covered == set(range(len(text)))
    assert all(a[0] <= b[0] for a, b in pairwise(spans))


def test_a_tokenizer_that_changes_text_between_parts_is_refused():
    with pytest.raises(ValueError, match="cannot encode the parts of a prompt separately: it changes text where"):
        encode(fast(stripping_unigram(), "<unk>"), "The boat")
    with pytest.raises(ValueError, match="separately: it changes text where"):
        chat_parts(fast(stripping_unigram(), "<unk>"), "Read.", "Who?")


@pytest.mark.parametrize("error", [TypeError, ValueError, NotImplementedError])
def test_a_tokenizer_that_takes_other_options_is_refused(error):
    """As mistral-common's does."""

    class Other:
        unk_token_id = None

        def __call__(self, text, **options):
            raise error("no such options")

    with pytest.raises(ValueError, match=r"the tokenizer \(Other\) cannot encode .*: load it with .*AutoTokenizer"):
        encode(Other(), "The boat")


@pytest.mark.parametrize("name", ["llama-3 and qwen", "llama-2", "embedded models"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fine\nnot \udc80 fine", r"the text, line 2: '\\udc80' is half of a surrogate pair"),
        ("\ud83d", "line 1: .* half of a surrogate pair"),
        (None, r"the text is missing \(null\): give its text as str"),
        (b"text", "the text is of type bytes"),
        (3, "the text is of type int"),
    ],
)
def test_only_text_is_encoded(name, text, message):
    for attempt in (encode, encode_with_spans):
        with pytest.raises(ValueError, match=message):
            attempt(KINDS[name](), text)
