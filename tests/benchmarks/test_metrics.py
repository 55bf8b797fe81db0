"""Metrics compared with values worked out by hand and with plain implementations of their definitions."""

import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkv.benchmarks import metrics

WORDS = st.lists(st.sampled_from("cat dog the a an Cat, dog. bird! 12 -- The".split()), max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("The cat sat.", "a cat", 2 * (1 / 2) * 1 / (1 / 2 + 1)),  # cat sat / cat: precision 1/2, recall 1
        ("cat cat dog", "cat dog dog", 2 / 3),  # two in common (cat, dog) of three and three
        ("Isn't it", "isnt it", 1.0),  # punctuation goes without leaving a space
        ("another", "a nother", 0.0),  # an article is a whole word
        ("", "cat", 0.0),
        ("the", "the", 0.0),  # nothing is left of either
    ],
)
def test_qa_f1(prediction, answer, score):
    assert metrics.qa_f1(prediction, answer) == pytest.approx(score)


@given(WORDS, WORDS)
def test_qa_f1_is_the_harmonic_mean(prediction, answer):
    """Precision and recall counted token by token; each token of the answer is used once."""

    def plain(text):
        kept = "".join(c for c in text.lower() if c.isalnum() or c.isspace())
        return [word for word in kept.split() if word not in ("a", "an", "the")]

    said, left = plain(prediction), plain(answer)
    wanted, common = len(left), 0
    for word in said:
        if word in left:
            left.remove(word)
            common += 1
    if common == 0:
        assert metrics.qa_f1(prediction, answer) == 0
    else:
        precision, recall = Fraction(common, len(said)), Fraction(common, wanted)
        assert metrics.qa_f1(prediction, answer) == pytest.approx(float(2 * precision * recall / (precision + recall)))


def test_chinese_words():
    # jieba cuts 我爱北京天安门 into 我 / 爱 / 北京 / 天安门
    assert metrics.qa_f1_zh("北京，天安门。", "我爱北京天安门") == pytest.approx(2 * 1 * (2 / 4) / (1 + 2 / 4))
    assert metrics.qa_f1_zh("", "北京") == 0
    assert metrics.rouge_l_zh("我爱北京", "我爱北京") == pytest.approx(1, abs=1e-6)
    assert metrics.rouge_l_zh("我", "北京") == 0


def longest_common(a, b):
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common(a[1:], b[1:])
    return max(longest_common(a[1:], b), longest_common(a, b[1:]))


@given(*[st.lists(st.sampled_from(["one", "two", "three", "four"]), min_size=1, max_size=6) for _ in range(2)])
def test_rouge_l_of_both_packages(prediction, answer):
    """One sentence: rouge-score counts words, the package rouge of LongBench distinct ones."""
    common = longest_common(prediction, answer)
    f = 2 * common / (len(prediction) + len(answer))
    assert metrics.rouge_scores(" ".join(prediction), [" ".join(answer)])["rougeL"] == pytest.approx(f)
    if len(set(prediction)) == len(prediction) and len(set(answer)) == len(answer):
        assert metrics.rouge_l(" ".join(prediction), " ".join(answer)) == pytest.approx(f, abs=1e-6)


def test_the_two_rouge_packages_differ():
    prediction, answer = "the cat the cat the cat sat", "the cat sat on the mat"
    assert metrics.rouge_l(prediction, answer) != pytest.approx(
        metrics.rouge_scores(prediction, [answer])["rougeL"], abs=0.01
    )


@pytest.mark.parametrize("prediction", ["", ".", " ... "])
def test_empty_predictions_score_zero(prediction):
    assert metrics.rouge_l(prediction, "the cat") == 0
    assert metrics.rouge_scores(prediction, ["the cat"]) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}


CLASSES = ["Number", "Date", "City", "Other number", "Number of a city"]


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("Date", "Date", 1),
        ("City or Date", "Date", 1 / 2),
        ("Date", "City", 0),
        ("Other number", "Other number", 1),  # "Number" is not in it: upper case counts
        ("It asks for a Number of a city", "Number of a city", 1),  # "Number" is a part of the answer: removed
        ("date", "Date", 0),
        ("", "Date", 0),
    ],
)
def test_classification(prediction, answer, score):
    assert metrics.classification(prediction, answer, CLASSES) == score


def test_classification_skips_the_class_after_a_removed_one():
    """The official scorer removes from the list that it iterates over, so every second adjacent match stays."""
    classes = ["x", "xy", "xyz"]  # all named; walk: x removed, then index 1 is now xyz, so xy stays
    assert metrics.classification("xyz", "xyz", classes) == 1 / 2


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [("Paragraph 12", "Paragraph 12", 1), ("12 or 3", "Paragraph 12", 1 / 2), ("none", "Paragraph 1", 0),
     ("121", "Paragraph 12", 0), ("Paragraph 7, 7, 8", "Paragraph 7", 2 / 3)],
)  # fmt: skip
def test_retrieval(prediction, answer, score):
    assert metrics.retrieval(prediction, answer) == pytest.approx(score)
    assert metrics.retrieval_zh(prediction, answer.replace("Paragraph ", "段落")) == pytest.approx(score)
    assert metrics.count(prediction, answer.split()[1]) == pytest.approx(score)


def edit_similarity(a, b):
    """1 - (insertions + deletions) / length, a substitution being one of each: from the longest common subsequence."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return 2 * table[-1][-1] / (len(a) + len(b)) if a or b else 1.0


@given(st.text("abc =(", min_size=1, max_size=12), st.text("abc =(", max_size=12))
def test_code_similarity_is_rounded_to_per_cents_as_fuzzywuzzy_does(line, answer):
    expected = round(100 * edit_similarity(line, answer)) / 100
    assert metrics.code_similarity(f"\n\n{line}\nreturn x", answer) == expected


@pytest.mark.parametrize(
    ("line", "answer", "score"),
    [
        ("abc", "abd", 0.67),  # two of three characters of each: 4/6
        ("abcd", "abcx", 0.75),
        ("aaaaaaab", "b", 0.22),  # 2/9
        ("aaaaaaa", "b" * 8 + "a", 0.12),  # 2/16 = 12.5 %, and halves are rounded to even
        ("x = x + 1", "x = x + 1", 1.0),
        ("x", "", 0.0),
    ],
)
def test_code_similarity_by_hand(line, answer, score):
    assert metrics.code_similarity(line, answer) == score


def test_code_similarity_takes_the_first_line_of_code():
    said = "```python\n# adds one\n// here\nx = x + 1\ny = 2"
    assert metrics.code_similarity(said, "x = x + 1") == 1
    assert metrics.code_similarity("# only a comment", "x = 1") == 0


def test_needle_scores():
    # stemmed words: eat/ate differ, walk(s) agree; 3 of 4 answer words, 3 of 5 said: P 3/5, R 3/4
    f = 2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4)
    assert metrics.rouge1_f("the man walks home now", "the man walk alone") == pytest.approx(f)
    assert metrics.token_overlap("a b b d", "b c b a") == pytest.approx(2 / 3)
    assert metrics.token_overlap("", "b") == 0


@given(st.text("abAB ", max_size=8), st.lists(st.text("abAB", min_size=1, max_size=3), min_size=1, max_size=4))
def test_ruler_scores(prediction, answers):
    found = [answer.upper() in prediction.upper() for answer in answers]
    assert metrics.string_match_all(prediction, answers) == pytest.approx(sum(found) / len(found))
    assert metrics.string_match_part(prediction, answers) == float(any(found))


@pytest.mark.parametrize(
    ("package", "score"),
    [
        ("rouge", lambda: metrics.rouge_l("cat", "cat")),
        ("rouge", lambda: metrics.rouge_l_zh("猫", "猫")),
        ("rouge_score", lambda: metrics.rouge_scores("cat", ["cat"])),
        ("rouge_score", lambda: metrics.rouge1_f("cat", "cat")),
        ("rapidfuzz", lambda: metrics.code_similarity("cat", "cat")),
        ("jieba", lambda: metrics.qa_f1_zh("猫", "猫")),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_has_it(monkeypatch, package, score):
    metrics._jieba.cache_clear()
    metrics._rouge_scorer.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(package), *sys.meta_path])
    message = rf"needs an optional package: pip install 'ragkv\[evaluation\]' \(No module named '{package}"
    with pytest.raises(ImportError, match=message):
        score()
    assert metrics.qa_f1("cat", "cat") == metrics.string_match_all("cat", ["cat"]) == 1  # need no package


class Hidden:
    """Makes a package look as if it was not installed."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=self.package)
        return None


def test_importing_the_benchmarks_imports_no_package_for_scores():
    code = "import sys, ragkv.benchmarks; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"rouge", "rouge_score", "rapidfuzz", "jieba", "pandas", "pyarrow"} & set(loaded)


def test_the_best_answer_counts():
    assert metrics.best(metrics.qa_f1, "cat", ["dog", "cat", "bird"]) == 1
    both = metrics.rouge_scores("cat", ["dog", "cat"])
    assert both["rouge1"] == 1
