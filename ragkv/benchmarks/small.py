"""RULER's tracking and retrieval tasks, and two-hop questions, in the small language of the embedded models."""

from functools import partial
from itertools import accumulate
from random import Random
from typing import Any

from ragkv.benchmarks.base import Example, Task
from ragkv.benchmarks.metrics import all_answers
from ragkv.tiny.corpus import SENTENCE_TOKENS, make_document, sentence_text

INSTRUCTION = "Read the notes below."


def _examples(name: str, statements: dict[str, Any], count: int, length: int, seed: int) -> list[Example]:
    """`count` examples; number i is the same whatever the count."""
    examples = []
    for number in range(count):
        document = make_document(Random(f"{name}/{seed}/{number}"), length // SENTENCE_TOKENS, **statements)
        question = document.questions[0]
        starts = list(accumulate((len(sentence_text(s)) + 1 for s in document.sentences), initial=0))
        examples.append(
            Example(
                id=f"{name}-{number:04d}",
                instruction=INSTRUCTION,
                document=document.text,
                question=question.text,
                answer_prefix=" " + question.answer_prefix,
                answers=question.answers,
                evidence=tuple((starts[i], starts[i + 1] - 1) for i in question.evidence),
            )
        )
    return examples


_STATEMENTS: dict[str, dict[str, Any]] = {
    "vt_1": {"chains": 10, "hops": 1},
    "vt_2": {"chains": 10, "hops": 2},
    "vt_3": {"chains": 10, "hops": 3},
    "needle": {"needles": 1},
    "multikey": {"needles": 24},
    "multiquery": {"needles": 24, "together": 3},
    "two_hop": {"films": 8},
}
TASKS = {name: Task(partial(_examples, name, statements), all_answers) for name, statements in _STATEMENTS.items()}
