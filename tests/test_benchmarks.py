"""Benchmarks: examples by seed, evidence, prompts and scores."""

import pytest

from ragkv.benchmarks import BENCHMARKS, build_prompt, evidence_tokens, get_task
from ragkv.benchmarks.metrics import all_answers
from ragkv.tiny.language import build_tokenizer

TOKENIZER = build_tokenizer()


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("532", ("532",), 1.0),
        ("532 KEY Bafoville 17", ("532", "17"), 1.0),
        ("532 KEY Bafoville 18", ("532", "17"), 0.5),
        ("1532", ("532",), 0.0),
        ("", ("5",), 0.0),
    ],
)
def test_all_answers(prediction, answers, score):
    assert all_answers(prediction, answers) == score


@pytest.mark.parametrize("task", BENCHMARKS["small"])
def test_examples_are_the_same_whatever_the_count(task):
    make = get_task("small", task).examples
    assert make(4, 512, 0)[:2] == make(2, 512, 0)
    assert make(1, 512, 0) != make(1, 512, 1)


@pytest.mark.parametrize("task", BENCHMARKS["small"])
def test_evidence_holds_the_answers(task):
    for example in get_task("small", task).examples(3, 512, 0):
        said = " ".join(example.document[start:stop] for start, stop in example.evidence)
        assert all(answer in said for answer in example.answers)
        assert all(example.document[stop - 1] == "." for _, stop in example.evidence)
        tokens = evidence_tokens(TOKENIZER, example)
        ids = TOKENIZER(example.document, add_special_tokens=False).input_ids
        assert TOKENIZER.decode([ids[i] for i in tokens]) == said


def test_prompts_hold_the_document_and_one_bos():
    example = get_task("small", "vt_2").examples(1, 512, 0)[0]
    prompt = build_prompt(TOKENIZER, example, 100)
    assert [len(chunk) for chunk in prompt.chunks] == [100] * 5 + [12]
    assert TOKENIZER.decode(sum(prompt.chunks, ())) == example.document
    assert prompt.ids.count(TOKENIZER.bos_token_id) == 1
    assert prompt.ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.decode(prompt.question).endswith(f"<|assistant|>{example.answer_prefix}")
