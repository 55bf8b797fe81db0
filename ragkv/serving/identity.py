"""Whether two processes serve the same model: a hash of its files, its configuration and its dtype.

vLLM fuses and renames weights while it loads them, so its model has no fingerprint in the sense of
`ragkv.models.fingerprint`. What both sides can hash is what they load from.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import xxhash
from transformers import PretrainedConfig

from ragkv.models.families import FAMILIES
from ragkv.models.read_state import CONFIG

_PIECE = 1 << 24  # bytes that are read at a time


def identity(folder: str | Path, config: PretrainedConfig, dtype: torch.dtype) -> str:
    """The identity of a model that is loaded from a folder.

    Parameters
    ----------
    folder
        With the model's safetensors files, all of which are read.
    config
        The configuration that the model was built with, which overrides may have changed.
    dtype
        What its keys and values are computed in.

    Raises
    ------
    ValueError
        There are no safetensors files in the folder.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ValueError(f"there are no safetensors files in {folder}: give the folder of a model")
    family = FAMILIES.get(config.model_type)
    names = (*CONFIG, *(family.config if family else ()))
    digest = xxhash.xxh3_128()
    for name in names:
        digest.update(f"{name}={getattr(config, name, None)!r}\n".encode())
    digest.update(str(dtype).encode())
    with ThreadPoolExecutor() as pool:
        for file, hashed in zip(files, pool.map(_hash, files), strict=True):
            digest.update(f"{file.name} {hashed}\n".encode())
    return digest.hexdigest()


def _hash(file: Path) -> str:
    digest = xxhash.xxh3_128()
    for piece in _pieces(file):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb", buffering=0) as stream:
        while piece := stream.read(_PIECE):
            yield piece
