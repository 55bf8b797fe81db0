"""LongBench's 21 tasks: the prompt, the length limit of the answer, and the score of each.

The prompts are this project's own; the benchmark's file of prompts can be used instead (`prompts_file`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ragkv.benchmarks import metrics
from ragkv.benchmarks.base import Scores, Task


@dataclass(frozen=True)
class Wording:
    """The texts around the document; ``{input}`` is replaced by the record's question."""

    before: str
    after: str
    answer_prefix: str = ""

    def filled(self, question: str) -> "Wording":
        parts = (self.before, self.after, self.answer_prefix)
        return Wording(*(part.replace("{input}", question) for part in parts))


def _scores(metric: metrics.Metric, clean: Callable[[str], str], rouge: bool) -> Scores:
    """The task's own metric under its own name; with `rouge`, also the three F measures of rouge-score."""
    name = metric.__name__

    def scores(prediction: str, answers: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
        prediction = clean(prediction)
        score = partial(metric, classes=classes) if metric is metrics.classification else metric
        own = {name: metrics.best(score, prediction, answers)}
        return own | metrics.rouge_scores(prediction, answers) if rouge else own

    return scores


def _whole(prediction: str) -> str:
    return prediction


def _first_line(prediction: str) -> str:
    return prediction.lstrip("\n").split("\n")[0]


def _task(metric: metrics.Metric, max_new_tokens: int, *, rouge: bool = False) -> Task:
    return Task(_scores(metric, _whole, rouge), max_new_tokens)


def _few_shot(metric: metrics.Metric, max_new_tokens: int, *, rouge: bool = False, stop: str | None = None) -> Task:
    """The prompt contains worked examples: no chat template is used, and only the answer's first line counts."""
    return Task(_scores(metric, _first_line, rouge), max_new_tokens, chat=False, stop=stop)


def _code(max_new_tokens: int) -> Task:
    return Task(_scores(metrics.code_similarity, _whole, False), max_new_tokens, chat=False)


_f1 = partial(_task, metrics.qa_f1, rouge=True)
_summary = partial(_task, metrics.rouge_l, rouge=True)
TASKS: dict[str, Task] = {
    "qasper": _f1(128),
    "multifieldqa_en": _f1(64),
    "hotpotqa": _f1(32),
    "2wikimqa": _f1(32),
    "gov_report": _summary(512),
    "multi_news": _summary(512),
    "trec": _few_shot(metrics.classification, 64),
    "triviaqa": _few_shot(metrics.qa_f1, 32, rouge=True),
    "samsum": _few_shot(metrics.rouge_l, 128, rouge=True, stop="\n"),
    "passage_count": _task(metrics.count, 32),
    "passage_retrieval_en": _task(metrics.retrieval, 32),
    "lcc": _code(64),
    "repobench-p": _code(64),
    "narrativeqa": _f1(128),
    "musique": _f1(32),
    "qmsum": _summary(512),
    "multifieldqa_zh": _task(metrics.qa_f1_zh, 64),
    "dureader": _task(metrics.rouge_l_zh, 128),
    "vcsum": _task(metrics.rouge_l_zh, 512),
    "lsht": _few_shot(metrics.classification, 64),
    "passage_retrieval_zh": _task(metrics.retrieval_zh, 32),
}
CLASSIFICATION = ("trec", "lsht")  # their answers are among the record's classes
WORDS = ("qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "triviaqa", "narrativeqa", "musique")  # compared by words
# Answers that a prediction can match at all, where that takes a certain form; and an example.
ANSWER_FORMS = {
    "passage_count": (re.compile(r"\A\d+\Z"), "3"),
    "passage_retrieval_en": (re.compile(r"Paragraph \d+"), "Paragraph 3"),
    "passage_retrieval_zh": (re.compile(r"段落\d+"), "段落3"),
}
LONGBENCH_E = tuple(TASKS)[:13]
BUCKETS = ((4000, "0-4k"), (8000, "4-8k"), (float("inf"), "8k+"))

_SHORT = "Answer in as few words as you can, and write nothing but the answer."
_passages = Wording(
    f"The passages below hold the answer to a question. {_SHORT}\n\nPassages:\n",
    f"\n\n{_SHORT}\n\nQuestion: {{input}}\nAnswer:",
)
WORDINGS: dict[str, Wording] = {
    "qasper": Wording(
        "Below is a scientific article, and after it a question about it. Answer as briefly as you can. Say "
        '"unanswerable" if the article does not tell, and "yes" or "no" where the question asks for it.\n\nArticle:\n',
        '\n\nAnswer briefly, with "yes", "no" or "unanswerable" where that fits, and without an explanation.\n\n'
        "Question: {input}\nAnswer:",
    ),
    "multifieldqa_en": Wording(
        "Read this text; a short question about it follows.\n\n",
        "\n\nAnswer from the text above, briefly and without anything else.\n\nQuestion: {input}\nAnswer:",
    ),
    "hotpotqa": _passages,
    "2wikimqa": _passages,
    "gov_report": Wording(
        "Here is a report of a government agency. Summarise it on one page.\n\nReport:\n",
        "\n\nSummarise the report on one page.\n\nSummary:",
    ),
    "multi_news": Wording(
        "Here are articles about the same news. Summarise all of them together on one page.\n\nArticles:\n",
        "\n\nSummarise all the articles together on one page.\n\nSummary:",
    ),
    "trec": Wording("Say what kind of answer each question asks for. The examples show how.\n\n", "\n{input}"),
    "triviaqa": Wording(
        "Answer the question with the help of the passage, in a few words and nothing else. The examples show how.\n\n",
        "\n\n{input}",
    ),
    "samsum": Wording("Summarise each dialogue in a few sentences. The examples show how.\n\n", "\n\n{input}"),
    "passage_count": Wording(
        "Some of the paragraphs below may be there more than once. Find out how many different ones there are.\n\n",
        "\n\nHow many different paragraphs are there? Give the number and nothing else, such as 1, 2 or 3.\n\nNumber:",
    ),
    "passage_retrieval_en": Wording(
        "Below are 30 paragraphs, and after them a summary of one of them. Find out of which.\n\n",
        "\n\nThis is the summary:\n\n{input}\n\nWhich paragraph does it summarise? Answer in the form of "
        '"Paragraph 1", "Paragraph 2" and so on.\n\nAnswer:',
    ),
    "lcc": Wording("Continue this code with its next line.\n", "Next line of code:\n"),
    "repobench-p": Wording("Continue this code with its next line.\n", "{input}Next line of code:\n"),
    "narrativeqa": Wording(
        "Below is a story, a book or a film script, and after it a question. Answer as briefly as you can, if possible "
        "with a single phrase.\n\nStory:\n",
        "\n\nAnswer from the story, as briefly as you can and without an explanation.\n\nQuestion: {input}\nAnswer:",
    ),
    "musique": _passages,
    "qmsum": Wording(
        "Below is the transcript of a meeting, and after it a question. Answer it in one or a few sentences.\n\n"
        "Transcript:\n",
        "\n\nAnswer this question about the meeting in one or a few sentences.\n\nQuestion: {input}\nAnswer:",
    ),
    "multifieldqa_zh": Wording(
        "请先阅读下面的材料。\n\n", "\n\n请根据上面的材料简短作答，只写答案。\n\n问题：{input}\n答案："
    ),
    "dureader": Wording(
        "请根据下面的文章回答文后的问题。\n\n文章：\n", "\n\n请根据上面的文章作答。\n\n问题：{input}\n答案："
    ),
    "vcsum": Wording("下面是一次会议的记录，请写出它的摘要。\n\n会议记录：\n", "\n\n会议摘要："),
    "lsht": Wording("请判断每篇新闻属于哪个类别，示例如下。\n\n", "\n{input}"),
    "passage_retrieval_zh": Wording(
        "下面有若干段文字，其后是其中一段的摘要，请找出它出自哪一段。\n\n",
        "\n\n摘要如下：\n\n{input}\n\n请用“段落1”、“段落2”这样的格式回答摘要出自哪一段。\n\n答案：",
    ),
}
