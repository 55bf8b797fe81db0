"""Is a model's folder complete? Looked at without loading its weights."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from ragkv.models.checks import check_config
from ragkv.models.load import load_tokenizer

INDEX = "model.safetensors.index.json"


def folder_problems(folder: Path) -> list[str]:
    """What a folder lacks to be loaded as a model; nothing if it is complete."""
    if not (folder / "config.json").is_file():
        return [f"{folder} has no config.json"]
    problems = []
    try:
        check_config(AutoConfig.from_pretrained(folder))
    except (OSError, ValueError) as error:
        problems.append(f"config.json: {_first_line(error)}")
    try:
        load_tokenizer(folder)
    except Exception as error:  # a broken tokenizer file leads to errors of any type
        problems.append(f"the tokenizer cannot be loaded: {_first_line(error)}")
    return problems + _weight_problems(folder)


def weights_in(folder: Path) -> list[Path]:
    """The files of weights that a folder has or should have."""
    return [folder / name for name in sorted(set(_places(folder).values()))] or [folder / "model.safetensors"]


def _places(folder: Path) -> dict[str, str]:
    """Which file each weight is in, where there are several."""
    index = folder / INDEX
    return json.loads(index.read_text())["weight_map"] if index.is_file() else {}


def _weight_problems(folder: Path) -> list[str]:
    try:
        places, shards = _places(folder), weights_in(folder)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return [f"{INDEX} is damaged: {_first_line(error)}"]
    problems = []
    for shard in shards:
        if not shard.is_file():
            problems.append(f"{shard.name} is missing")
            continue
        try:
            with safe_open(shard, "pt") as weights:  # refuses a file whose size is not that of its header
                lacking = {name for name, place in places.items() if place == shard.name} - set(weights.keys())
        except (OSError, SafetensorError) as error:
            problems.append(f"{shard.name} is damaged: {_first_line(error)}")
            continue
        if lacking:
            problems.append(f"{shard.name} lacks {len(lacking)} weights, {min(lacking)} among them")
    return problems


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
