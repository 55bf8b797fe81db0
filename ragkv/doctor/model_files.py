"""Is a model's folder complete? Its weights are not loaded for this, and code that comes with it never runs."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from ragkv.models.checks import check_config
from ragkv.models.load import load_tokenizer

INDEX = "model.safetensors.index.json"
OWN_CODE = "it needs Python code that comes with the model (auto_map), which this check never runs"


def folder_problems(folder: Path) -> list[str]:
    """What keeps a folder from being loaded as a model; an empty list if nothing does."""
    if not (folder / "config.json").is_file():
        return [f"{folder} has no config.json"]
    problems = []
    try:
        # False refuses the model's own code; transformers' default would ask on the terminal whether to run it.
        check_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError) as error:
        problems.append(f"config.json: {_reason(error)}")
    try:
        load_tokenizer(folder, trust_remote_code=False)
    except Exception as error:  # damaged tokenizer files raise errors of many types
        problems.append(f"the tokenizer cannot be loaded: {_reason(error)}")
    return problems + _weight_problems(folder)


def weights_in(folder: Path) -> list[Path]:
    """The files of weights that a folder has or should have."""
    shards = sorted(set(_shard_of_weight(folder).values()))
    return [folder / name for name in shards] or [folder / "model.safetensors"]


def _shard_of_weight(folder: Path) -> dict[str, str]:
    """The file that each weight is in, from the index; empty where there is no index because there is one file."""
    index = folder / INDEX
    return json.loads(index.read_text())["weight_map"] if index.is_file() else {}


def _weight_problems(folder: Path) -> list[str]:
    try:
        shard_of_weight = _shard_of_weight(folder)
        shards = weights_in(folder)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return [f"{INDEX} is damaged: {_first_line(error)}"]
    problems = []
    for shard in shards:
        if not shard.is_file():
            problems.append(f"{shard.name} is missing")
            continue
        expected = {weight for weight, name in shard_of_weight.items() if name == shard.name}
        try:
            with safe_open(shard, "pt") as weights:  # refuses a file that is shorter or longer than its header says
                lacking = expected - set(weights.keys())
        except (OSError, SafetensorError) as error:
            problems.append(f"{shard.name} is damaged: {_first_line(error)}")
            continue
        if lacking:
            problems.append(f"{shard.name} lacks {len(lacking)} weights, {min(lacking)} among them")
    return problems


def _reason(error: Exception) -> str:
    """Why a configuration or tokenizer was not loaded."""
    return OWN_CODE if "trust_remote_code" in str(error) else _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
