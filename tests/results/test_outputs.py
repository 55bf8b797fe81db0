"""Names of results: each model, benchmark and task has files of its own, and only those."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkv.results.outputs import Outputs, checked_name, model_folders


@pytest.mark.parametrize(
    ("models", "folders"),
    [
        (["tiny-llama", "meta/Llama-3"], ["tiny-llama", "Llama-3"]),
        (["meta/Llama-3", "mine/Llama-3"], ["meta--Llama-3", "mine--Llama-3"]),
        (["models/a/final", "models/b/final"], ["models--a--final", "models--b--final"]),
        (["/data/x", "x"], ["data--x", "x"]),
        (["meta/Llama", "mine/llama"], ["meta--Llama", "mine--llama"]),  # one folder on macOS and Windows
        (["models/report", "models/store"], ["models--report", "models--store"]),  # the profile's own folders
    ],
)
def test_models_that_end_in_the_same_name_have_folders_of_their_own(models, folders):
    assert list(model_folders(models).values()) == folders


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (["a/x", "a/x"], "the models a/x, a/x would share the results folder 'x'"),
        (["a/x", "./a/x"], "would share"),
        (["a/x/", "a/x"], "would share"),
        (["a/b/x", "a--b/x"], "would share"),
        (["a/x", "b/x", "c/a--x"], "the models a/x, c/a--x would share"),
        (["store"], "other files there have such names"),
        (["a/.."], "cannot name results"),
        (["a/\x1b[2J"], "cannot be shown"),
        (["a/" + "x" * 200], "longer than 120 bytes"),
    ],
)
def test_models_that_cannot_be_told_apart_are_refused(models, said):
    with pytest.raises(ValueError) as error:
        model_folders(models)
    assert said in str(error.value)
    assert str(error.value).isprintable()


@given(st.lists(st.text("ab-/.", min_size=1, max_size=6), min_size=1, max_size=5))
def test_different_models_never_share_a_folder(models):
    try:
        folders = model_folders(models)
    except ValueError:
        return
    assert len({name.casefold() for name in folders.values()}) == len(models)
    assert all("/" not in name for name in folders.values())


@pytest.mark.parametrize(
    "profile", ["reference", "index.html", "\x1b]0;title\x07", "line\nbreak", "\u202etxt", "x" * 121]
)
def test_a_profile_whose_results_would_lie_elsewhere_or_cannot_be_shown_is_refused(profile):
    with pytest.raises(ValueError) as error:
        _ = Outputs(Path(), profile, "m").report
    assert "cannot name results" in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("task", ["vt.prompts", "vt.0-of-2", "vt.abc.partial.1", "vt\t1", "vt\0"])
def test_a_task_whose_files_would_be_those_of_another_is_refused(task):
    with pytest.raises(ValueError, match="cannot name results"):
        Outputs(Path(), "p", "m").rows("ruler", task)


def test_names_with_dots_spaces_and_letters_of_all_scripts_are_fine():
    for name in ("qwen2.5-7b", "a b", "Größe", "模型", "it's", "{}", "$x", "007", "=1"):
        assert checked_name(name) == name
        assert Outputs(Path(), name, name).rows(name, name).name == f"{name}.parquet"


def test_profiles_have_manifests_of_their_own():
    """Two of them in one store must not overwrite each other: their segments could be evicted."""
    names = ["a b", "a-b", "a/b", "a_b", "a'b"]
    assert len({Outputs(Path(), name, "m").manifest for name in names}) == len(names)
    assert Outputs(Path(), "qwen2.5-7b", "Qwen2.5-7B").manifest == "qwen2.5-7b.Qwen2.5-7B"
