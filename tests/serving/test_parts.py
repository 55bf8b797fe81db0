"""What a request may say about its parts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkv import Prompt
from ragkv.serving.parts import Parts

LENGTHS = st.tuples(st.integers(0, 5), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 5))


@given(LENGTHS)
def test_parts_describe_a_prompt_and_make_it_again(lengths):
    prefix, chunks, question = lengths
    ids = iter(range(100))
    part = lambda length: [next(ids) for _ in range(length)]  # noqa: E731
    prompt = Prompt(part(prefix), [part(length) for length in chunks], part(question))
    parts = Parts.read(Parts.of(prompt, "a3", ratio=0.25).params(), len(prompt.ids))
    assert parts.prompt(prompt.ids) == prompt
    assert parts.make_selector().ratio == 0.25


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"prefix": 2, "chunks": [3, 4], "question": 2},
            "+ question 2 = 11 tokens, and the prompt has 12",
        ),
        ({"prefix": 2, "chunks": [3, 4], "question": 3, "ratio": 1}, "unknown entries (ratio)"),
        ({"prefix": 2, "chunks": [], "question": 3}, "'chunks' must be a list"),
        ({"prefix": 2, "chunks": [3, 0, 4], "question": 3}, "'chunks[1]' is 0"),
        ({"prefix": -1, "chunks": [3, 4], "question": 3}, "'prefix' is -1"),
        ({"prefix": 2, "chunks": [3, 4]}, "'question' is None"),
        ({"prefix": 2, "chunks": [3, 4], "question": True}, "'question' is True"),
        ({"prefix": 2, "chunks": [3, 4], "question": 3, "selector": "a4"}, "unknown selector 'a4'"),
        ({"prefix": 2, "chunks": [3, 4], "question": 3, "options": {"ratio": 2}}, "ratio is 2"),
        ({"prefix": 2, "chunks": [3, 4], "question": 3, "options": [1]}, "'options' must be an object"),
        ("all of it", "is a str"),
    ],
)
def test_parts_that_are_not_right_are_refused(entry, message):
    with pytest.raises(ValueError) as error:
        Parts.read({"ragkv": entry}, 12)
    assert message in str(error.value)
