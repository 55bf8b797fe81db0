"""The probe, compared with the model's own attention and with another selector of the same tokens; calibration."""

from dataclasses import dataclass, field

import pytest
import torch
from helpers import fuse, make_model, memory_store, plain, random_prompt, relative_error

from ragkv import fused_prefill, precompute
from ragkv.experiment.calibration import calibrate, read_calibration, write_calibration
from ragkv.models import decoder
from ragkv.models.fingerprint import fingerprint
from ragkv.rag.chunk_context import ChunkContext
from ragkv.selectors import Selector, get_selector


def eager_attention(model, prompt):
    """The model's own attention of the question to the document, ``(layers, heads, question, document)``."""
    eager = type(model)._from_config(model.config, attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    with torch.inference_mode():
        weights = eager(torch.tensor([prompt.ids]), output_attentions=True).attentions
    span, asked = prompt.document_span, prompt.question_span
    return torch.stack(weights)[:, 0, :, asked.start :, span.start : span.stop]


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("first_layer", [0, 1, 2])
def test_the_probe_sees_what_the_model_attends_to(model, rng, power, first_layer):
    """With one chunk and no prefix the reused cache is exact, so the attention is the model's own."""
    prompt = random_prompt(rng, chunks=(40,), prefix=None)
    scores = eager_attention(model, prompt)[first_layer:].pow(power).sum((0, 1, 2))
    chosen = fuse(model, prompt, "probe", ratio=0.2, hops=1, first_layer=first_layer, power=power).selected
    expected = scores.topk(8).indices.sort().values
    assert [p for p in chosen.tolist() if p in prompt.document_span] == expected.tolist()


@pytest.mark.parametrize("hops", [1, 2, 3, 7])
def test_what_the_probe_did_not_choose_stays_as_it_was_stored(llama, rng, hops):
    """Passes leave no keys and values behind, except those of chosen tokens."""
    prompt = random_prompt(rng)
    found, reused = (fuse(llama, prompt, "probe", ratio=0.3, hops=hops), fuse(llama, prompt, "full_reuse"))
    left = [p for p in prompt.document_span if p not in found.selected.tolist()]
    assert len(left) == len(prompt.document_span) - int(0.3 * len(prompt.document_span))
    for mine, stored in zip(found.cache.layers, reused.cache.layers, strict=True):
        assert torch.equal(mine.keys[:, :, left], stored.keys[:, :, left])
        assert torch.equal(mine.values[:, :, left], stored.values[:, :, left])


def test_passes_do_not_change_how_the_chosen_tokens_are_computed(llama, rng):
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
    ("options", "message"),
    [({"hops": 0}, "hops is 0"), ({"power": 0}, "power is 0"), ({"first_layer": -1}, "count from 0"),
     ({"following": -1}, "following is -1"), ({"looking": 2}, "looking is 2"), ({"threshold": 1.5}, "threshold is 1.5"),
     ({"layer": 1}, "before the first layer"), ({"first_layer": 3}, "this model has 3 layers")],
)  # fmt: skip
def test_bad_options_of_the_probe(llama, rng, options, message):
    with pytest.raises(ValueError, match=message):
        fuse(llama, random_prompt(rng), "probe", **options)


def test_what_follows_a_token_comes_with_it(llama, rng):
    """Each chosen token brings the one behind it, within the same budget."""
    prompt = random_prompt(rng)
    alone, along = (fuse(llama, prompt, "probe", ratio=r, hops=1, following=f) for r, f in ((0.15, 0), (0.3, 1)))
    first = set(alone.selected.tolist())
    behind = {p + 1 for p in first if p + 1 in prompt.document_span}
    assert first | behind <= set(along.selected.tolist())
    assert len(along.selected) == int(0.3 * len(prompt.document_span)) + len(prompt.question)


def test_a_threshold_takes_only_scores_near_the_highest(model, rng):
    """With one chunk, no prefix and one pass the scores are the model's own attention."""
    prompt = random_prompt(rng, chunks=(40,), prefix=None)
    scores = eager_attention(model, prompt).pow(2.0).sum((0, 1, 2))
    for threshold in (0.05, 0.3, 0.9):
        chosen = fuse(model, prompt, "probe", ratio=1.0, hops=1, threshold=threshold).selected.tolist()
        expected = (scores >= threshold * scores.max()).nonzero().flatten() + prompt.document_span.start
        assert [p for p in chosen if p in prompt.document_span] == expected.tolist()


def test_few_tokens_look_in_a_pass(llama, rng, monkeypatch):
    """The probe's passes compute the question and at most the given share of the document."""
    prompt, passes = random_prompt(rng, chunks=(50, 50)), []
    first, norm = llama.model.layers[0].input_layernorm, decoder.norm

    def counted(norms, module, hidden):
        if module is first:
            passes.append(hidden.shape[1])
        return norm(norms, module, hidden)

    monkeypatch.setattr(decoder, "norm", counted)
    fuse(llama, prompt, "probe", ratio=0.5, hops=4, looking=0.03)
    question = len(prompt.question)
    assert passes[-5:-1] == [question, question + 3, question + 3, question + 3]


def test_calibration_finds_the_layer_at_which_the_fused_prefill_is_nearest(llama, rng):
    prompts, store = [random_prompt(rng, chunks=(20, 20)) for _ in range(3)], memory_store()
    precompute(llama, prompts, store)
    table = calibrate(llama, prompts, store, ratio=0.2)
    assert set(table["first_layer"]) == {0, 1, 2}
    assert table["divergence"].is_monotonic_increasing
    assert (table["divergence"] > -1e-9).all()
    everything = calibrate(llama, prompts, store, ratio=1.0).query("threshold == 0")
    assert everything["divergence"].abs().max() < 1e-6  # all recomputed: no difference
    for row in table.iloc[[0, -1]].to_dict("records"):  # each divergence, computed from the probabilities
        said, distance = row.pop("divergence"), 0.0
        for prompt in prompts:
            full = plain(llama, prompt)[0].double().softmax(-1)
            found = fused_prefill(llama, prompt, store, get_selector("probe", ratio=0.2, **row)).logits
            distance += float((full * (full / found.double().softmax(-1)).log()).sum()) / 3
        assert distance == pytest.approx(said, rel=1e-3, abs=1e-6)


def test_a_calibration_is_for_one_model_only(llama, rng, tmp_path):
    prompts, store, path = [random_prompt(rng, chunks=(20, 20))], memory_store(), tmp_path / "llama.json"
    precompute(llama, prompts, store)
    table = calibrate(llama, prompts, store, ratio=0.2)
    with pytest.raises(ValueError, match=r"there is no calibration .*llama\.json: run"):
        read_calibration(path, fingerprint(llama))
    write_calibration(path, llama, table, ChunkContext())
    assert (
        get_selector("probe", **read_calibration(path, fingerprint(llama))).first_layer == table["first_layer"].iloc[0]
    )
    with pytest.raises(ValueError, match="was made for another model"):
        read_calibration(path, fingerprint(make_model("llama", seed=1)))
    for content in (
        "",
        "[]",
        "{}",
        '{"options": {}, "provenance": {}}',
        '{"options": 1, "provenance": {"model": "a"}}',
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"llama\.json is not a calibration: run `ragkv calibrate MODEL`"):
            read_calibration(path, fingerprint(llama))
