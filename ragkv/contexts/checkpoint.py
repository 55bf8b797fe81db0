"""The state of a training, and the file that it goes on from."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """The state after a step.

    Attributes
    ----------
    step, seconds, prompts
        How many steps, how long, and how many prompts so far.
    divergence
        The running mean of the answers' divergence on the texts trained on, in nats.
    held_out
        The same on held-out texts, when it was last computed; NaN before, and without such texts.
    best
        The smallest `held_out` so far.
    waited
        How often in a row `held_out` did not improve.
    """

    step: int = 0
    seconds: float = 0.0
    prompts: int = 0
    divergence: float = float("nan")
    held_out: float = float("nan")
    best: float = float("inf")
    waited: int = 0


@dataclass
class Training:
    """What changes while a context is trained.

    Attributes
    ----------
    context
        ``(layers, 2, kv_heads, tokens, head_dim)``, on the model's device.
    best
        The context that was best on held-out texts; the context itself before these were looked at.
    optimizer
        Of the context.
    progress
        How far it is.
    """

    context: Tensor
    best: Tensor
    optimizer: torch.optim.Optimizer
    progress: Progress


def save_checkpoint(path: Path, training: Training, made_with: dict[str, str]) -> None:
    """Write everything that training goes on from; the file appears whole or not at all.

    Parameters
    ----------
    made_with
        What has to be the same when it goes on.
    """
    tensors = {"context": training.context.detach().cpu(), "best": training.best.detach().cpu().clone()}
    of_context = training.optimizer.state[training.context]
    tensors |= {f"optimizer.{name}": value.cpu() for name, value in of_context.items()}
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    save_file(tensors, partial, made_with | {"progress": json.dumps(asdict(training.progress))})
    partial.replace(path)


def resume(path: Path, training: Training, made_with: dict[str, str]) -> None:
    """Go on from a checkpoint.

    Raises
    ------
    ValueError
        It was made with another model or other settings.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if any(metadata.get(name) != value for name, value in made_with.items()):
        raise ValueError(
            f"{path} is a checkpoint of another model or of other settings: remove it, or give another path"
        )
    tensors = load_file(path)
    device = training.context.device
    with torch.no_grad():
        training.context.copy_(tensors.pop("context"))
    training.best = tensors.pop("best").to(device)
    training.optimizer.state[training.context] = {
        name.removeprefix("optimizer."): value if name.endswith("step") else value.to(device)
        for name, value in tensors.items()
    }
    training.progress = Progress(**json.loads(metadata["progress"]))
