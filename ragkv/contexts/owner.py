"""What a learned context belongs to: a model's weights, in whichever data type they are loaded.

A model's fingerprint (`ragkv.models.fingerprint`) is another one in float32 than in bfloat16, but one context serves
both. So a context belongs to a hash of the first row of every layer's key and value projections, rounded to bfloat16.
Models that were trained apart, or trained further, differ in these rows. Loading in float32 or bfloat16 does not change
them, nor do adapters; loading in float16 may, where weights are tiny.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

_PROJECTIONS = ("k_proj", "v_proj")


def owner(model: PreTrainedModel) -> str:
    """What the contexts of this model belong to: a hash."""
    attention = [layer.self_attn for layer in model.model.layers]
    return _hash(getattr(module, name).weight[0] for module in attention for name in _PROJECTIONS)


def owner_of_folder(folder: Path) -> str | None:
    """The same, read from a model's files; None if they are not safetensors files that name these projections."""
    files = _files_of_tensors(folder)
    rows = []
    layer = 0
    while (names := [f"model.layers.{layer}.self_attn.{name}.weight" for name in _PROJECTIONS])[0] in files:
        for name in names:
            if name not in files:
                return None
            with safe_open(files[name], "pt") as file:
                rows.append(file.get_slice(name)[:1][0])
        layer += 1
    return _hash(rows) if rows else None


def _hash(rows: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.detach().to("cpu", torch.bfloat16).view(torch.uint8).numpy().tobytes())
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
