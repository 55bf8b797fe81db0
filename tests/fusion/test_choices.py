"""A choice that is trusted at first gives what checking it at once gives, and an invalid one is found out."""

from dataclasses import dataclass, replace

import pytest
import torch
from helpers import memory_store, random_prompt
from hypothesis import given
from hypothesis import strategies as st

from ragkv import fused_prefill, precompute
from ragkv.fusion.choices import Choices
from ragkv.selectors import Selector

DOCUMENT = 12


@dataclass(frozen=True)
class Given(Selector):
    """Makes a given choice, and counts how often."""

    chosen: tuple[int, ...] = ()
    asked: tuple[list, ...] = ()

    def choose(self, seen):
        self.asked[0].append(1)
        return torch.tensor(self.chosen, dtype=torch.long)


@pytest.fixture
def prompt(rng):
    return random_prompt(rng, chunks=(5, DOCUMENT - 5), question=3)


def rows(prompt, chosen, trusting):
    """The rows that go on, None if the choice was invalid, or the message of an error."""
    choices, start = Choices(trusting), len(prompt.prefix)
    selector, active = Given(asked=([],)), torch.arange(start, start + DOCUMENT + 3)
    try:
        kept = choices.rows(selector, prompt, torch.tensor(chosen, dtype=torch.long), active)
    except ValueError as error:
        return str(error)
    return kept.tolist() if choices.valid() else None


@given(chosen=st.lists(st.integers(0, DOCUMENT - 1), max_size=DOCUMENT, unique=True))
def test_each_token_once_is_valid(prompt, chosen):
    expected = [*sorted(chosen), DOCUMENT, DOCUMENT + 1, DOCUMENT + 2]
    assert rows(prompt, tuple(chosen), True) == rows(prompt, tuple(chosen), False) == expected


@given(chosen=st.lists(st.integers(-2, DOCUMENT + 1), min_size=1, max_size=DOCUMENT))
def test_an_invalid_choice_is_found_out(prompt, chosen):
    inside = all(0 <= token < DOCUMENT for token in chosen)
    careful, trusted = rows(prompt, tuple(chosen), False), rows(prompt, tuple(chosen), True)
    assert trusted == (careful if inside and len(set(chosen)) == len(chosen) else None)
    if inside:
        assert careful == [*sorted(set(chosen)), DOCUMENT, DOCUMENT + 1, DOCUMENT + 2]
    else:
        assert "chose a token outside the document's 12" in careful


@pytest.mark.parametrize(("chosen", "times"), [((3, 1, 9), 1), ((), 1), ((3, 1, 3), 2)])
def test_only_an_invalid_choice_is_made_twice(llama, prompt, chosen, times):
    selector, store = Given(chosen=chosen, asked=([],)), memory_store()
    precompute(llama, [prompt], store)
    found = fused_prefill(llama, prompt, store, selector)
    assert len(selector.asked[0]) == times
    start = prompt.document_span.start
    assert found.selected.tolist() == [*(start + token for token in sorted(set(chosen))), *prompt.question_span]
    once = fused_prefill(llama, prompt, store, replace(selector, chosen=tuple(set(chosen))))
    assert torch.equal(found.logits, once.logits)
