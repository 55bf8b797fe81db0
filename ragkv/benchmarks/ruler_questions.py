"""RULER's question answering: questions of SQuAD and HotpotQA among documents that do not answer them."""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ragkv.benchmarks.ruler_tasks import Drawn, Layout


@dataclass(frozen=True)
class Questions:
    """Questions with the documents that hold their answers, and other documents."""

    questions: list[tuple[str, tuple[str, ...], list[str]]]
    documents: list[str]

    def draw(self, rng: Random, number: int) -> Drawn:
        """Question `number`, its documents among as many others as fit."""
        question, answers, true = self.questions[number % len(self.questions)]
        others = [document for document in self.documents if document not in true]
        rng.shuffle(others)
        seed = rng.random()

        def layout(size: int) -> Layout:
            documents = true + others[: size - len(true)]
            Random(seed).shuffle(documents)
            return Layout(
                before="Answer the question from the documents below, in as few words as you can.\n\n",
                parts=[f"Document {place}:\n{document}" for place, document in enumerate(documents, 1)],
                hits={i for i, document in enumerate(documents) if document in true},
                after=f"\n\nAnswer from the documents above, in as few words as you can.\n\nQuestion: {question}",
                answer_prefix=" Answer:",
                answers=answers,
                gap="\n\n",
            )

        return Drawn(layout, smallest=len(true))


def read_squad(path: Path) -> Questions:
    """SQuAD's own file; questions without an answer are left out."""
    paragraphs = [p for article in _json(path)["data"] for p in article["paragraphs"]]
    questions = [
        (q["question"], tuple(dict.fromkeys(a["text"] for a in q["answers"])), [p["context"]])
        for p in paragraphs
        for q in p["qas"]
        if not q.get("is_impossible") and q["answers"]
    ]
    return Questions(questions, list(dict.fromkeys(p["context"] for p in paragraphs)))


def read_hotpotqa(path: Path) -> Questions:
    """HotpotQA's own file (distractor setting)."""
    records = _json(path)
    texts = [{title: f"{title}\n{''.join(lines)}" for title, lines in record["context"]} for record in records]
    questions: list[tuple[str, tuple[str, ...], list[str]]] = [
        (r["question"], (r["answer"],), [text[title] for title in dict.fromkeys(t for t, _ in r["supporting_facts"])])
        for r, text in zip(records, texts, strict=True)
    ]
    return Questions(questions, list(dict.fromkeys(document for text in texts for document in text.values())))


def _json(path: Path):  # type: ignore[no-untyped-def]
    if not path.exists():
        raise FileNotFoundError(f"{path.resolve()} is not there: it is to hold the questions of this task")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: this is no JSON ({error.msg} at line {error.lineno})") from None
