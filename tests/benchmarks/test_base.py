"""What a benchmark of one's own gives is checked, not coerced."""

from dataclasses import replace

import numpy as np
import pytest

from ragkv.benchmarks import Example, Task
from ragkv.benchmarks.base import check_examples

EXAMPLE = Example("a", "Read: ", "The text.", "Why?", answers=("because",), labels={"length": 5})


def test_examples_that_can_be_told_apart_are_taken():
    check_examples("mine, task t", [EXAMPLE, replace(EXAMPLE, id="b")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "a"}, "mine, task t: example 2 has the id 'a': ids are texts, each different"),
        ({"id": 2}, "mine, task t: example 2 has the id 2: ids are texts, each different"),
        ({"id": "b", "answers": "because"}, "mine, task t, b: the answers are 'because', not several texts"),
        ({"id": "b", "answers": (3,)}, r"mine, task t, b: the answers are \(3,\), not several texts"),
        ({"id": "b", "labels": {"method": 1}}, "mine, task t, b: tables have a column 'method': give the label"),
        ({"id": "b", "labels": {"score": 1}}, "mine, task t, b: tables have a column 'score': give the label"),
    ],
)
def test_what_would_be_mistaken_for_something_else_is_named(changes, message):
    """Rows are found by the id, a text is a sequence of letters, and labels become columns."""
    with pytest.raises(ValueError, match=message):
        check_examples("mine, task t", [EXAMPLE, replace(EXAMPLE, **changes)])


@pytest.mark.parametrize("score", [0, 1, 0.5, True, np.float32(0.5)])
def test_numbers_from_0_to_1_are_scores(score):
    (found,) = Task(lambda *_: {"mine": score}, 1).score("", (), ()).values()
    assert type(found) is float
    assert found == score


@pytest.mark.parametrize("score", [None, "0.5", 50.0, -0.1, float("nan"), [1]])
def test_other_values_are_no_scores(score):
    with pytest.raises(ValueError, match=r"the task's score 'mine' is .*: it must be a number from 0 to 1"):
        Task(lambda *_: {"mine": score}, 1).score("", (), ())


@pytest.mark.parametrize("scores", [{}, None, 0.5])
def test_a_task_has_at_least_one_score_with_a_name(scores):
    with pytest.raises(ValueError, match="they must be numbers from 0 to 1 by name"):
        Task(lambda *_: scores, 1).score("", (), ())
