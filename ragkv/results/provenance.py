"""What a result depends on: versions, device, the model's fingerprint and the commit."""

import os
import platform
import subprocess
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from ragkv.models.fingerprint import fingerprint
from ragkv.version import __version__


def provenance(model: PreTrainedModel) -> dict[str, str | int | bool]:
    """What a result depends on: versions, device, the model's fingerprint and the commit."""
    device = next(model.parameters()).device
    return {
        "ragkv": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "model": fingerprint(model),
    }


def commit() -> str:
    """The git commit of the code, with ``-modified`` if files differ from it.

    The environment variable ``RAGKV_COMMIT`` overrides it, for example in a container without the repository. Without
    either it is ``"unknown"``.
    """
    if commit_name := os.environ.get("RAGKV_COMMIT"):
        return commit_name
    folder = Path(__file__).parents[1]  # the package

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("-modified" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
