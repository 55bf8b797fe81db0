"""Parts of a prompt, encoded one by one, add up to the whole, for tokenizers of every kind."""

import json
from functools import cache
from itertools import pairwise

import pytest
from helpers import PROSE, byte_level_bpe
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    ByteLevelBPETokenizer,
    Regex,
    SentencePieceBPETokenizer,
    SentencePieceUnigramTokenizer,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from ragkv.prompt.encoding import encode, encode_with_spans
from ragkv.prompt.templates import chat_parts
from ragkv.tiny.language import build_tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LINES = [*PROSE.split("\n"), "the tide turned and the boat came home. Read this: (yes) or (no)? 1 2 3 4 5 6 7 8 9 0"]


def fast(tokenizer, unk_token=None):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unk_token, clean_up_tokenization_spaces=False)


def changed(tokenizer, **changes):
    """The same tokenizer with other settings of its model."""
    content = json.loads(tokenizer.to_str())
    content["model"] |= changes
    return Tokenizer.from_str(json.dumps(content))


def llama_2(prepend_scheme="always", legacy=False):
    """Like Llama-2 and Mistral: a space is inserted before every text; line breaks and rare characters are bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=False)
    trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False, special_tokens=["<unk>", *BYTES])
    tokenizer.train_from_iterator(LINES, trainer)
    spaces = [decoders.Strip(" ", 1, 0)] if prepend_scheme != "never" else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *spaces]
    )
    return tokenizer


def llama_with_line_breaks():
    """Like Llama tokenizers that were extended: one piece for a line break, another for two."""
    model = json.loads(llama_2().to_str())["model"]
    vocab = model["vocab"]
    vocab |= {"\n": len(vocab), "\n\n": len(vocab) + 1}
    return changed(llama_2(), vocab=vocab, merges=[*model["merges"], ["\n", "\n"]])


def unigram_with_bytes():
    """SentencePiece's unigram model as Llama models of other languages have it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.UnigramTrainer(
        vocab_size=400, show_progress=False, special_tokens=["<unk>", *BYTES], unk_token="<unk>"
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return changed(tokenizer, byte_fallback=True)


def sentencepiece_bpe():
    tokenizer = SentencePieceBPETokenizer()
    tokenizer.train_from_iterator(LINES, vocab_size=300, show_progress=False, special_tokens=["<unk>"])
    return tokenizer._tokenizer


def sentencepiece_unigram():
    tokenizer = SentencePieceUnigramTokenizer()
    tokenizer.train_from_iterator(
        LINES, vocab_size=200, show_progress=False, special_tokens=["<unk>"], unk_token="<unk>"
    )
    return tokenizer._tokenizer


def stripping_unigram():
    """Like T5: white space at the ends of a text is removed, so no part of a prompt can begin or end with it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, show_progress=False, special_tokens=["<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def byte_level(add_prefix_space):
    tokenizer = ByteLevelBPETokenizer(add_prefix_space=add_prefix_space)
    tokenizer.train_from_iterator(LINES, vocab_size=400, show_progress=False)
    return tokenizer._tokenizer


# Tokenizers that need no guard, those that a line break has always guarded, and those that need another way.
PLAIN = {
    "embedded models": build_tokenizer,
    "llama-3 and qwen": byte_level_bpe,
    "byte-level": lambda: fast(byte_level(add_prefix_space=False)),
    "no space inserted": lambda: fast(llama_2("never"), "<unk>"),
}
LINE_BREAK = {
    "llama-2": lambda: fast(llama_2(), "<unk>"),
    "llama-2, legacy": lambda: fast(llama_2(legacy=True), "<unk>"),
    "mistral": lambda: fast(llama_2("first"), "<unk>"),
    "unigram with bytes": lambda: fast(unigram_with_bytes(), "<unk>"),
}
OTHERS = {
    "line-break pieces": lambda: fast(llama_with_line_breaks(), "<unk>"),
    "add_prefix_space": lambda: fast(byte_level(add_prefix_space=True)),
    "sentencepiece bpe": lambda: fast(sentencepiece_bpe(), "<unk>"),
    "sentencepiece unigram": lambda: fast(sentencepiece_unigram(), "<unk>"),
}
KINDS = {name: cache(make) for name, make in (PLAIN | LINE_BREAK | OTHERS).items()}
# These keep all white space and know every character.
LOSSLESS = [name for name in KINDS if name not in ("embedded models", "sentencepiece bpe", "sentencepiece unigram")]
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
