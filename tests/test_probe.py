"""The probe, against the model's own attention and against the same tokens chosen otherwise; its calibration."""

from dataclasses import dataclass, field

import pytest
import torch
from conftest import fuse, memory_store, plain, random_prompt, relative_error

from ragkv import fused_prefill, precompute
from ragkv.calibrate import calibrate
from ragkv.selectors import Selector, get_selector


def eager_attention(model, prompt):
    """The model's own weights of the question's tokens over the document, (layers, heads, question, document)."""
    eager = type(model)._from_config(model.config, attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    with torch.inference_mode():
        weights = eager(torch.tensor([prompt.ids]), output_attentions=True).attentions
    span, asked = prompt.document_span, prompt.question_span
    return torch.stack(weights)[:, 0, :, asked.start :, span.start : span.stop]


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("first_layer", [0, 1, 2])
def test_the_probe_sees_what_the_model_attends_to(model, rng, power, first_layer):
    """With one chunk and no prefix nothing is missing from the reused cache: the model's own attention says it."""
    prompt = random_prompt(rng, chunks=(40,), prefix=None)
    scores = eager_attention(model, prompt)[first_layer:].pow(power).sum((0, 1, 2))
    chosen = fuse(model, prompt, "probe", ratio=0.2, hops=1, first_layer=first_layer, power=power).selected
    expected = scores.topk(8).indices.sort().values
    assert [p for p in chosen.tolist() if p in prompt.document_span] == expected.tolist()


@pytest.mark.parametrize("hops", [1, 2, 3, 7])
def test_what_the_probe_did_not_choose_stays_as_it_was_stored(llama, rng, hops):
    """Passes leave nothing behind: their keys and values are only where tokens were chosen."""
    prompt = random_prompt(rng)
    found, reused = (fuse(llama, prompt, "probe", ratio=0.3, hops=hops), fuse(llama, prompt, "full_reuse"))
    left = [p for p in prompt.document_span if p not in found.selected.tolist()]
    assert len(left) == len(prompt.document_span) - int(0.3 * len(prompt.document_span))
    for mine, stored in zip(found.cache.layers, reused.cache.layers, strict=True):
        assert torch.equal(mine.keys[:, :, left], stored.keys[:, :, left])
        assert torch.equal(mine.values[:, :, left], stored.values[:, :, left])


def test_the_chosen_tokens_are_computed_after_the_passes_as_without_them(llama, rng):
    """The probe only chooses: the same tokens chosen by another selector give the same logits."""

    @dataclass(frozen=True)
    class Given(Selector):
        tokens: list = field(default_factory=list)

        def choose(self, seen):
            return torch.tensor(self.tokens)

    prompt = random_prompt(rng)
    probed = fuse(llama, prompt, "probe", ratio=0.3)
    store = memory_store()
    precompute(llama, [prompt], store)
    tokens = [p - prompt.document_span.start for p in probed.selected.tolist() if p in prompt.document_span]
    given = fused_prefill(llama, prompt, store, Given(tokens=tokens))
    assert torch.equal(given.selected, probed.selected)
    assert relative_error(probed.logits, given.logits) <= 1e-5


@pytest.mark.parametrize(
    ("options", "said"),
    [({"hops": 0}, "hops is 0"), ({"power": 0}, "power is 0"), ({"first_layer": -1}, "count from 0"),
     ({"layer": 1}, "before the first layer"), ({"first_layer": 3}, "this model has 3 layers")],
)  # fmt: skip
def test_bad_options_of_the_probe(llama, rng, options, said):
    with pytest.raises(ValueError, match=said):
        fuse(llama, random_prompt(rng), "probe", **options)


def test_calibration_finds_the_layer_at_which_the_fused_prefill_is_nearest(llama, rng):
    prompts, store = [random_prompt(rng, chunks=(20, 20)) for _ in range(3)], memory_store()
    precompute(llama, prompts, store)
    table = calibrate(llama, prompts, store, ratio=0.2)
    assert sorted(table["first_layer"]) == [0, 1, 2]
    assert table["divergence"].is_monotonic_increasing
    assert (table["divergence"] > -1e-9).all()
    assert calibrate(llama, prompts, store, ratio=1.0)["divergence"].abs().max() < 1e-6  # all recomputed: no difference
    best = int(table["first_layer"].iloc[0])
    distances = {}
    for layer in range(3):
        distances[layer] = 0.0
        for prompt in prompts:
            full = plain(llama, prompt)[0].double().softmax(-1)
            probe = get_selector("probe", ratio=0.2, first_layer=layer)
            found = fused_prefill(llama, prompt, store, probe).logits.double().softmax(-1)
            distances[layer] += float((full * (full / found).log()).sum())
    assert min(distances, key=distances.get) == best
