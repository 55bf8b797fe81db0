"""Files of a model that are damaged or do not fit together are refused; nothing is filled in."""

import json
import os
import shutil

import pytest

from ragkv.models.load import load_model, model_source


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4e0b\nsize 14696880\n"
DAMAGE = {
    "weights cut short": lambda folder: os.truncate(folder / "model.safetensors", 100_000),
    "empty weights": lambda folder: os.truncate(folder / "model.safetensors", 0),
    "a pointer of git lfs": lambda folder: (folder / "model.safetensors").write_text(LFS),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "a list as configuration": lambda folder: (folder / "config.json").write_text("[]"),
    "half a configuration": lambda folder: os.truncate(folder / "config.json", 100),
    "half a tokenizer": lambda folder: os.truncate(folder / "tokenizer.json", 1000),
    "a layer too few": lambda folder: change_config(folder, num_hidden_layers=9),
    "other shapes": lambda folder: change_config(folder, intermediate_size=700),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_one_clear_error(tmp_path, damage):
    folder = tmp_path / "mine"
    shutil.copytree(model_source("tiny-llama"), folder)
    DAMAGE[damage](folder)
    with pytest.raises(ValueError, match=r"model .*mine' could not be loaded") as error:
        load_model(folder, device="cpu")
    assert "\n" not in str(error.value)
    if damage == "a layer too few":  # transformers would fill it with random numbers
        assert "its files lack weights that its config.json asks for: model.layers.8.input_layernorm" in str(
            error.value
        )
    if damage == "other shapes":
        assert "mlp.down_proj.weight (its shape is (256, 768), not (256, 700)) and 23 more" in str(error.value)
