"""Which segments share a pass: the size of a pass follows from a segment alone, and stays within its bound."""

from hypothesis import given
from hypothesis import strategies as st

from ragkv.models.pass_shape import LOGIT_TOKENS, PassShape, batches
from ragkv.prompt import Segment


@st.composite
def any_segment(draw):
    ids = draw(st.lists(st.integers(3, 9), min_size=1, max_size=90))
    context = draw(st.lists(st.integers(3, 9), max_size=40))
    return Segment(tuple(ids), tuple(context))


@given(st.lists(any_segment(), max_size=20), st.integers(0, 700))
def test_every_segment_is_in_one_pass_that_it_fits(segments, most_tokens):
    passes = list(batches(segments, most_tokens))
    computed = [segment for _, batch in passes for segment in batch]
    assert sorted(computed, key=repr) == sorted(segments, key=repr)
    for shape, batch in passes:
        assert 1 <= len(batch) <= shape.rows
        for segment in batch:
            assert len(segment.context) == shape.context
            assert len(segment.ids) <= shape.tokens
            assert shape == PassShape.shared(segment, most_tokens)


@given(any_segment(), st.integers(0, 5000))
def test_a_shared_pass_stays_within_its_bounds(segment, most_tokens):
    shape = PassShape.shared(segment, most_tokens)
    if shape.rows == 1:
        assert shape == PassShape.alone(segment)
        assert (shape.tokens, shape.context) == (len(segment.ids), len(segment.context))
    else:
        assert shape.rows * (shape.context + shape.tokens) <= most_tokens
        assert shape.rows % shape.logit_rows == 0
        assert shape.logit_rows * shape.tokens <= LOGIT_TOKENS


@given(st.integers(1, 600), st.integers(0, 50), st.integers(0, 5000))
def test_a_pass_is_shared_wherever_two_such_segments_fit(tokens, context, most_tokens):
    shape = PassShape.shared(Segment((5,) * tokens, (6,) * context), most_tokens)
    padded = -(-tokens // 16) * 16
    assert (shape.rows > 1) == (2 * (context + padded) <= most_tokens)
    if shape.rows > 1:  # at least half of what fits is used
        assert 2 * (shape.rows + 1) * (context + padded) > most_tokens


def test_only_the_last_pass_of_a_shape_may_have_rows_without_a_segment():
    segments = [Segment((3, number)) for number in range(10)] + [Segment((3,) * 20)]
    sizes = [(shape.tokens, shape.rows, len(batch)) for shape, batch in batches(segments, 64)]
    assert sizes == [(16, 4, 4), (16, 4, 4), (16, 4, 2), (32, 2, 1)]


def test_different_contexts_do_not_share_a_pass():
    first, second = Segment((3, 4), (5,)), Segment((3, 4), (5, 6))
    assert [batch for _, batch in batches([first, second], 500)] == [[first], [second]]
