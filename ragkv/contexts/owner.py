"""What a learned context belongs to: a model's weights, in whichever data type they are loaded.

A model's fingerprint (`ragkv.models.fingerprint`) is another one in float32 than in bfloat16, but one context serves
both. So a context belongs to a hash of the first row of every projection of attention, rounded to bfloat16. Models that
were trained apart, or trained further, differ in these rows. They are the same in float32 and bfloat16, and behind
adapters; in float16 they may differ, where weights are tiny.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

_PROJECTION = re.compile(r"model\.layers\.\d+\.self_attn\.\w+_proj\.weight")


def owner(model: PreTrainedModel) -> str:
    """What the contexts of this model belong to: a hash."""
    weights = {name.replace(".base_layer", ""): weight for name, weight in model.named_parameters()}  # of adapters
    return _hash({name: weight[0] for name, weight in weights.items() if _PROJECTION.fullmatch(name)})


def owner_of_folder(folder: Path) -> str | None:
    """The same, read from a model's files; None if they are not safetensors files that name these projections."""
    rows = {}
    for name, path in _files_of_tensors(folder).items():
        if _PROJECTION.fullmatch(name):
            with safe_open(path, "pt") as file:
                rows[name] = file.get_slice(name)[:1][0]
    return _hash(rows) if rows else None


def _hash(rows: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(rows):
        digest.update(name.encode())
        digest.update(rows[name].detach().to("cpu", torch.bfloat16).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _files_of_tensors(folder: Path) -> dict[str, Path]:
    """Where each tensor of a model is; nothing for a folder without safetensors files."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.is_file():
        return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    if single.is_file():
        with safe_open(single, "pt") as file:
            return dict.fromkeys(file.keys(), single)
    return {}
