"""RULER's question answering: SQuAD and HotpotQA questions, their documents hidden among unrelated ones."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ragkv.benchmarks.records import read_json, require
from ragkv.benchmarks.ruler_tasks import Drawn, Layout


@dataclass(frozen=True)
class Question:
    """A question.

    Attributes
    ----------
    text
        The question.
    answers
        Accepted answers.
    true
        The documents that contain the answer.
    near
        Documents on the same topic.
    """

    text: str
    answers: tuple[str, ...]
    true: list[str]
    near: list[str]


@dataclass(frozen=True)
class Questions:
    """Questions, and the documents of all of them together."""

    questions: list[Question]
    documents: list[str]

    def draw(self, rng: Random, number: int) -> Drawn:
        """Question `number`, its documents among as many others as fit, those on the same topic first."""
        question = self.questions[number]
        true = question.true
        near = [document for document in dict.fromkeys(question.near) if document not in true]
        related = {*true, *near}
        far = [document for document in self.documents if document not in related]
        rng.shuffle(near)
        rng.shuffle(far)
        others = near + far
        seed = rng.random()

        def layout(size: int) -> Layout:
            documents = true + others[: size - len(true)]
            Random(seed).shuffle(documents)
            return Layout(
                before="Answer the question from the documents below, in as few words as you can.\n\n",
                parts=[f"Document {place}:\n{document}" for place, document in enumerate(documents, 1)],
                hits={i for i, document in enumerate(documents) if document in true},
                after=f"\n\nAnswer from the documents above, in as few words as you can.\n\nQuestion: {question.text}",
                answer_prefix=" Answer:",
                answers=question.answers,
                gap="\n\n",
            )

        return Drawn(layout, smallest=len(true))


def read_squad(path: Path) -> Questions:
    """Read SQuAD's own file; unanswerable questions are left out.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, or it is not in SQuAD's format; the message says where.
    """
    content = _read(path, dict)
    require(content, str(path), {"data": list})
    questions: list[Question] = []
    documents: list[str] = []
    for article_where, article in _records(content["data"], f"{path} article", {"paragraphs": list}):
        where, fields = f"{article_where} paragraph", {"context": str, "qas": list}
        paragraphs = list(_records(article["paragraphs"], where, fields))
        near = [paragraph["context"] for _, paragraph in paragraphs]
        documents += near
        for where, paragraph in paragraphs:
            fields = {"question": str, "answers": list}
            for inner, question in _records(paragraph["qas"], f"{where} question", fields):
                records = _records(question["answers"], f"{inner} answer", {"text": str})
                answers = [answer["text"] for _, answer in records if answer["text"].strip()]
                if answers and not question.get("is_impossible"):
                    distinct = tuple(dict.fromkeys(answers))
                    questions.append(Question(question["question"], distinct, [paragraph["context"]], near))
    return _not_empty(questions, documents, path)


def read_hotpotqa(path: Path) -> Questions:
    """Read HotpotQA's own file (distractor setting).

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, or it is not in HotpotQA's format; the message says where.
    """
    fields = {"question": str, "answer": str, "context": list, "supporting_facts": list}
    questions: list[Question] = []
    documents: list[str] = []
    for where, record in _records(_read(path, list), f"{path} question", fields):
        try:
            texts = {title: f"{title}\n{''.join(lines)}" for title, lines in record["context"]}
            true = [texts[title] for title in dict.fromkeys(title for title, _ in record["supporting_facts"])]
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{where}: context must be a list of [title, [sentences]], and supporting_facts one of "
                "[title, number] with these titles: give HotpotQA's file of the distractor setting"
            ) from None
        if not record["answer"].strip():
            raise ValueError(f"{where}: the field 'answer' is blank, which any prediction would match")
        documents += texts.values()
        questions.append(Question(record["question"], (record["answer"],), true, list(texts.values())))
    return _not_empty(questions, documents, path)


def _not_empty(questions: list[Question], documents: list[str], path: Path) -> Questions:
    if not questions:
        raise ValueError(f"{path}: there is no question with an answer in it")
    return Questions(questions, list(dict.fromkeys(documents)))


def _records(records: list, where: str, fields: Mapping[str, type]) -> Iterator[tuple[str, dict]]:
    """Each record and its place in the file, after checking that it has the fields."""
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise ValueError(f"{where} {number}: this must be an object with {', '.join(fields)}")
        require(record, f"{where} {number}", fields)
        yield f"{where} {number}", record


def _read(path: Path, kind: type) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path.resolve()} is not there: put the file with this task's questions there")
    content = read_json(path)
    if not isinstance(content, kind):
        raise ValueError(f"{path}: it must hold a {kind.__name__}, it holds a {type(content).__name__}")
    return content
