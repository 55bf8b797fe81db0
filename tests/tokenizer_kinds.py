"""Small tokenizers of every kind that models have."""

import json
from functools import cache

from helpers import PROSE, byte_level_bpe
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
