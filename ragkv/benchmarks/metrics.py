"""Scores of a prediction, from 0 to 1, as the benchmarks define them."""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from ragkv.extras import extra

Metric = Callable[..., float]  # metric(prediction, answer)


def best(metric: Metric, prediction: str, answers: Sequence[str]) -> float:
    """The highest score over the answers."""
    return max(metric(prediction, answer) for answer in answers)


def token_f1(prediction: Iterable[str], answer: Iterable[str]) -> float:
    """F1 of the tokens that prediction and answer share; repeated tokens count as often as both contain them."""
    predicted = Counter(prediction)
    expected = Counter(answer)
    common = (predicted & expected).total()
    return 2 * common / (predicted.total() + expected.total()) if common else 0.0


def qa_f1(prediction: str, answer: str) -> float:
    """LongBench's F1 over English words: lower case, without punctuation and articles."""
    return token_f1(_words(prediction), _words(answer))


def _words(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


_CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿"
    "–—‘’‛“”„‟…‧﹏."
)


def qa_f1_zh(prediction: str, answer: str) -> float:
    """LongBench's F1 over Chinese words, as segmented by jieba, without punctuation."""
    return token_f1(_chinese_words(prediction), _chinese_words(answer))


def _chinese_words(text: str) -> list[str]:
    dropped = set(string.punctuation + _CHINESE_PUNCTUATION)
    words = ("".join(c for c in word.lower() if c not in dropped and not c.isspace()) for word in _cut(text))
    return [word for word in words if word]


def _cut(text: str) -> list[str]:
    return list(_jieba().cut(text, cut_all=False))


@cache
def _jieba() -> Any:
    with extra("evaluation", "scoring Chinese text"):
        import jieba
    jieba.setLogLevel("WARNING")
    return jieba


def rouge_l(prediction: str, answer: str) -> float:
    """LongBench's ROUGE-L F, by the package ``rouge``; 0 where that fails, as on an empty prediction."""
    with extra("evaluation", "ROUGE-L"):
        from rouge import Rouge
    try:
        return Rouge().get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
    except (ValueError, RecursionError):
        return 0.0


def rouge_l_zh(prediction: str, answer: str) -> float:
    """LongBench's ROUGE-L F over Chinese words."""
    return rouge_l(" ".join(_cut(prediction)), " ".join(_cut(answer)))


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """LongBench's classification score: 1 / (classes named in the prediction) if the right one is among them, else 0.

    A class whose name is a part of the right one is not counted. The official scorer removes such classes from the
    list while iterating over it, and therefore skips the class after each removed one; so does this function.
    """
    named = [name for name in classes if name in prediction]
    for name in named:
        if name in answer and name != answer:
            named.remove(name)
    return 1 / len(named) if answer in named else 0.0


def retrieval(prediction: str, answer: str, header: str = "Paragraph ") -> float:
    """LongBench's retrieval score: the share of the prediction's numbers that are the paragraph's number."""
    return count(prediction, re.findall(re.escape(header) + r"(\d+)", answer)[0])


def retrieval_zh(prediction: str, answer: str) -> float:
    """The same for Chinese answers, ``段落<number>``."""
    return retrieval(prediction, answer, "段落")


def count(prediction: str, answer: str) -> float:
    """LongBench's counting score: the share of the prediction's numbers that equal the answer."""
    numbers = re.findall(r"\d+", prediction)
    return sum(number == str(answer) for number in numbers) / len(numbers) if numbers else 0.0


def code_similarity(prediction: str, answer: str) -> float:
    """LongBench's code score: edit similarity of the prediction's first line of code, in whole per cents.

    The official scorer uses fuzzywuzzy, which rounds; rapidfuzz computes the same ratio without rounding it.
    """
    lines = prediction.lstrip("\n").split("\n")
    code = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    with extra("evaluation", "code similarity"):
        from rapidfuzz import fuzz
    return round(fuzz.ratio(code, answer)) / 100


@cache
def _rouge_scorer() -> Any:
    with extra("evaluation", "ROUGE"):
        from rouge_score.rouge_scorer import RougeScorer
    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def rouge_scores(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """``rouge1``, ``rouge2`` and ``rougeL``: F measures of the package rouge-score (stemmed), best over the answers."""
    every = [_rouge_scorer().score(answer, prediction) for answer in answers]
    return {name: max(scores[name].fmeasure for scores in every) for name in every[0]}


def rouge1_f(prediction: str, answer: str) -> float:
    """ROUGE-1 F of the package rouge-score (stemmed)."""
    return _rouge_scorer().score(answer, prediction)["rouge1"].fmeasure


def token_overlap(prediction: str, answer: str) -> float:
    """The share of the answer's distinct words that the prediction contains."""
    expected = set(answer.split())
    return len(expected & set(prediction.split())) / len(expected)


def string_match_all(prediction: str, answers: Sequence[str]) -> float:
    """RULER's score: the share of the answers that the prediction contains, ignoring case."""
    return sum(answer.lower() in prediction.lower() for answer in answers) / len(answers)


def string_match_part(prediction: str, answers: Sequence[str]) -> float:
    """RULER's score for question answering: 1 if the prediction contains any of the answers, ignoring case."""
    return float(any(answer.lower() in prediction.lower() for answer in answers))
