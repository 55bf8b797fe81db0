"""A version of transformers that computes something else is seen."""

from functools import wraps

import pytest
import torch
from helpers import FAMILIES, relative_error

from ragkv.doctor.exactness import LOGITS, family_model, logits_error, same_answer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_of_transformers_that_differs_is_seen(family, monkeypatch):
    """Its layers give something else than their parts, as a version with other names or steps would."""
    model = family_model(family)
    assert logits_error(model) <= LOGITS
    assert same_answer(model)
    layer = type(model.model.layers[1])
    forward = layer.forward

    @wraps(forward)
    def differing(*args, **options):
        return -forward(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", differing)
        assert logits_error(model) > 0.1
        assert not same_answer(model)
    assert same_answer(model)


def test_models_of_a_family_are_the_same_every_time_and_disturb_no_seed():
    torch.manual_seed(3)
    before = torch.rand(4)
    torch.manual_seed(3)
    first, second = family_model("qwen2"), family_model("qwen2")
    assert torch.equal(torch.rand(4), before)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert relative_error(one, other) == 0
