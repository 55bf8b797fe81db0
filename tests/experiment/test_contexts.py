"""Learned contexts in a profile: found, checked before anything starts, and part of what results depend on."""

import pandas as pd
import pytest
import torch
from helpers import random_context
from profiles import write_profile

from ragkv import KVStore, fused_prefill, precompute
from ragkv.contexts import LearnedContext, find
from ragkv.contexts.owner import owner
from ragkv.experiment.evaluation import evaluate
from ragkv.experiment.experiment import Experiment
from ragkv.experiment.methods import depends_on
from ragkv.fusion.decoding import decode
from ragkv.run import run_profile
from ragkv.selectors import get_selector

WAYS = {
    "full_reuse": {},
    "learned": {"context": "learned", "file": "c.safetensors"},
    "learned, prefix": {"context": "learned+prefix", "file": "c.safetensors"},
}


def methods(ways=WAYS):
    return [{"selector": "full_reuse", "label": label, "offline": way} for label, way in ways.items()]


@pytest.fixture
def experiment(tmp_path, tiny):
    random_context(tiny[0]).save(tmp_path / "c.safetensors")
    experiment = write_profile(tmp_path, methods=methods())
    experiment.chunk(tiny[1])
    return experiment


def test_each_row_is_what_a_prefill_behind_its_context_gives(experiment, tiny, tmp_path):
    model, tokenizer = tiny
    assert experiment.missing() == []
    done = experiment.precompute(model)
    prompts = experiment.items("ruler", "vt_1")
    chunks = {chunk for item in prompts for chunk in item.prompt.chunks}
    assert done.written == 1 + 3 * len(chunks)  # the prefix is the same for all
    rows = evaluate(experiment, "ruler", "vt_1", *tiny, progress=False)

    context = LearnedContext.load(tmp_path / "c.safetensors", model)
    prompt = prompts[0].prompt
    placed = {
        "full_reuse": prompt,
        "learned": prompt.behind(context),
        "learned, prefix": prompt.behind_prefix().behind(context),
    }
    for name, expected in placed.items():
        store = KVStore(f"memory://{tmp_path}")
        precompute(model, [expected], store)
        ids = decode(model, fused_prefill(model, expected, store, get_selector("full_reuse")), max_new_tokens=4).ids
        row = rows[(rows["method"] == name) & (rows["prompt"] == prompts[0].id)]
        assert tokenizer.decode(ids, skip_special_tokens=True).startswith(row["prediction"].iloc[0])


def test_results_depend_on_what_the_context_contains_and_not_on_where_it_is(experiment, tiny, tmp_path):
    first = depends_on(experiment, "ruler", "vt_1", "w", "torch.float32")
    (tmp_path / "c.safetensors").rename(tmp_path / "d.safetensors")
    moved = {name: way | ({"file": "d.safetensors"} if way else {}) for name, way in WAYS.items()}
    moved_profile = write_profile(tmp_path, methods=methods(moved))
    assert depends_on(moved_profile, "ruler", "vt_1", "w", "torch.float32") == first
    random_context(tiny[0], seed=1).save(tmp_path / "d.safetensors")
    others = depends_on(moved_profile, "ruler", "vt_1", "w", "torch.float32")
    assert [name for name in first if first[name] != others[name]] == ["contexts"]
    without = write_profile(tmp_path, methods=methods({"full_reuse": {}}))
    assert "contexts" not in depends_on(without, "ruler", "vt_1", "w", "torch.float32")


@pytest.mark.parametrize("fault", ["missing", "foreign", "damaged", "something else"])
def test_a_file_that_cannot_be_used_is_said_before_a_model_is_loaded(experiment, tiny, tmp_path, monkeypatch, fault):
    path = tmp_path / "c.safetensors"
    if fault == "missing":
        path.unlink()
    elif fault == "foreign":
        LearnedContext(random_context(tiny[0]).layers, "0" * 64).save(path)
    elif fault == "damaged":
        content = bytearray(path.read_bytes())
        content[-5] ^= 4
        path.write_bytes(bytes(content))
    else:
        path.write_text("not a context")
    monkeypatch.setattr(Experiment, "load_model", None)
    said = {
        "missing": "there is no learned context",
        "foreign": "was trained for another model",
        "damaged": "is damaged",
        "something else": "cannot be read as a learned context",
    }
    with pytest.raises(ValueError, match=said[fault]) as error:
        run_profile("p", root=tmp_path)
    assert str(error.value).count(str(path)) == 1


def test_each_model_of_a_profile_has_its_own_file(tmp_path, tiny):
    (tmp_path / "contexts").mkdir()
    random_context(tiny[0]).save(tmp_path / "contexts/tiny-llama.safetensors")
    own = {"context": "learned", "file": "contexts/{model}.safetensors"}
    write_profile(tmp_path, models=["tiny-llama", "tiny-qwen"], methods=methods({"learned": own}))
    problems = {run.model: run.missing() for run in Experiment.load_all("p", root=tmp_path)}
    assert problems["tiny-llama"] == []
    (problem,) = problems["tiny-qwen"]
    assert f"there is no learned context {tmp_path}/contexts/tiny-qwen.safetensors" in problem


def test_without_a_file_the_context_that_comes_with_the_package_is_found_by_the_weights(tmp_path, tiny, monkeypatch):
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    monkeypatch.setattr(find, "FOLDER", shipped)
    experiment = write_profile(tmp_path, methods=methods({"learned": {"context": "learned"}}))
    assert experiment.missing() == [
        "no learned context comes with ragkv for the model tiny-llama: train one with `ragkv context train`, and name "
        "its file instead"
    ]
    context = random_context(tiny[0])
    context.save(shipped / "any-name.safetensors")
    assert experiment.missing() == []
    assert list(filter(None, experiment.contexts.load(tiny[0]).values())) == [context]


def test_a_context_of_another_model_is_refused_once_the_model_is_loaded(experiment, tiny, tmp_path):
    """As for models on a hub, whose weights are not here before."""
    other = LearnedContext(random_context(tiny[0]).layers, "0" * 64)
    with pytest.raises(ValueError, match="another model"):
        other.check(owner(tiny[0]))
    other.save(tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="another model"):
        experiment.precompute(tiny[0])


def test_a_file_without_a_learned_context_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a file is for a learned context, and the context is 'prefix'"):
        write_profile(tmp_path, methods=methods({"x": {"context": "prefix", "file": "c.safetensors"}}))


def test_plain_reuse_behind_a_context_of_no_tokens_is_plain_reuse(experiment, tiny, tmp_path):
    nothing = random_context(tiny[0], tokens=1)
    LearnedContext(nothing.layers[:, :, :, :0], nothing.model).save(tmp_path / "c.safetensors")
    experiment.precompute(tiny[0])
    rows = evaluate(experiment, "ruler", "vt_1", *tiny, progress=False)
    by_method = [rows[rows["method"] == name]["prediction"].reset_index(drop=True) for name in WAYS]
    pd.testing.assert_series_equal(by_method[0], by_method[1])
    assert torch.isfinite(torch.tensor(rows["score"].to_numpy())).all()
