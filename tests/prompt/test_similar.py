"""Chunks computed after their most similar ones: BM25 compared with its formula, and the resulting contexts."""

import math
import os
import re
import sys
from itertools import chain, combinations
from unicodedata import normalize

import pytest
import torch
from helpers import BOS, fuse, random_prompt, relative_error
from hypothesis import given
from hypothesis import strategies as st

from ragkv.prompt import Prompt
from ragkv.prompt.similar import behind_similar, best_first, similar_contexts, words
from ragkv.prompt.similar import bm25 as bm25_scores


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


# words


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=80))
def test_words_of_ascii_text_are_runs_of_letters_digits_and_underscores(text):
    assert words([text]) == [re.findall(r"\w+", text.lower())]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GPT4模型v2很好", ["gpt4", "模", "型", "v2", "很", "好"]),
        ("2024年のカメラ", ["2024", "年", "の", "カ", "メ", "ラ"]),
        ("iPhone사용법", ["iphone", "사", "용", "법"]),
        ("서울에서 만나요", ["서", "울", "에", "서", "만", "나", "요"]),
        ("コーヒー", ["コ", "ー", "ヒ", "ー"]),
        ("人々は\u3007時", ["人", "々", "は", "\u3007", "時"]),
        ("\U00020bb7野家", ["\U00020bb7", "野", "家"]),
        ("x\U0001d400y", ["xay"]),
        ("กา แฟ", ["ก", "า", "แ", "ฟ"]),
        ("snake_case don't", ["snake_case", "don", "t"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("", []),
        ("?!", []),
    ],
)
def test_scripts_without_spaces_are_cut_everywhere(text, expected):
    assert words([text]) == [expected]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("caf\u00e9", "cafe\u0301"),  # composed and decomposed
        ("ｶﾞｲﾄﾞ", "ガイド"),  # half-width kana with their marks
        ("\uff32\uff21\uff27\uff12", "rag2"),  # full-width letters and digits
        ("Straße", "STRASSE"),
        ("ﬁnal", "final"),  # a ligature
        ("co\u00adoperate", "cooperate"),  # a soft hyphen
        ("zero\u200bwidth", "zerowidth"),
        ("\u110b\u1161", "아"),  # Hangul in letters, as file systems write it
        ("\uf9ab", "嶺"),  # a compatibility ideograph
        ("㍿", "株式会社"),
        ("Ǆ", "ǆ"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),  # a final sigma
        ("x²", "x2"),
        ("葛\U000e0100", "葛"),  # a variation selector
    ],
)
def test_the_same_word_written_in_two_ways_is_one(one, other):
    assert words([one]) == words([other]) != [[]]


@given(st.text(max_size=40))
def test_words_do_not_depend_on_the_unicode_form_of_a_text(text):
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert words([normalize(form, text)]) == words([text])


@pytest.mark.parametrize(
    ("question", "documents"),
    [
        ("GPT4模型的价格", ["天气很好。", "新的GPT4模型价格是20元。", "今天下雨。"]),
        ("서울의 날씨", ["부산에서 만나요", "커피 한잔", "서울은 날씨가 맑다"]),
        ("ﾄｳｷｮｳの天気", ["大阪まで", "トウキョウは晴れ、天気がよい", "京都で"][::-1]),
        ("cafe\u0301", ["the bar", "the pub", "the caf\u00e9"]),
    ],
)
def test_the_document_that_shares_its_words_is_found(question, documents):
    scores = bm25_scores(words(documents))(words([question])[0])
    (right,) = [i for i, text in enumerate(documents) if any(w in text for w in ("GPT4", "서울", "トウ", "caf"))]
    assert best_first(scores)[0] == right and scores[right] > 0


@pytest.mark.parametrize("set_before", [None, "true"])
def test_jax_reserves_no_gpu_memory_because_of_bm25(monkeypatch, tmp_path, set_before):
    """bm25s starts JAX when it is imported, and JAX reads this variable when it starts."""
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    monkeypatch.delenv(name, raising=False)
    if set_before is not None:
        monkeypatch.setenv(name, set_before)
    (tmp_path / "bm25s.py").write_text(
        f"import os\nseen = os.environ.get({name!r})\n"
        "class BM25:\n    def index(self, *args, **options): pass\n    def get_scores(self, query): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "bm25s", None)  # so that it is what it was afterwards
    del sys.modules["bm25s"]
    bm25_scores([["word"]])
    assert sys.modules["bm25s"].seen == (set_before or "false")
    assert os.environ.get(name) == set_before
