"""Training a learned context: fused prefill's next tokens are made to be full prefill's, with the model frozen.

For prompts made from plain text (`ragkv.contexts.exercises`), chunks are computed behind the context as `precompute`
does it, their keys are rotated to their places, and the question and its answer are run over them: plain reuse, with
gradients all the way to the context. The loss is the Kullback-Leibler divergence from the distributions that a full
prefill of the same prompt gives, along the answer and, with less weight, along the question.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.contexts.exercises import Exercise, Exercises
from ragkv.contexts.learned import LearnedContext
from ragkv.contexts.loss import divergences, keys_values
from ragkv.contexts.owner import owner
from ragkv.models.checks import check_model
from ragkv.models.fingerprint import fingerprint
from ragkv.models.limits import position_count
from ragkv.models.rotary import Rotary

QUESTION_WEIGHT = 0.2  # of the question's divergence, beside the answer's


@dataclass(frozen=True)
class Settings:
    """How a context is trained.

    Attributes
    ----------
    tokens
        The context's length.
    seconds, steps
        Training ends at whichever comes first.
    learning_rate
        Of AdamW at its highest: it rises over the first 50 steps and falls along a cosine to a twentieth.
    behind_prefix
        The share of steps whose chunks are computed behind the prompt's prefix; in the others they are computed behind
        BOS alone. One context then serves both.
    seed
        Of the texts' order and the context's first values.
    """

    tokens: int = 16
    seconds: float = 540.0
    steps: int = 100_000
    learning_rate: float = 1e-2
    behind_prefix: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """The state after a step: seconds, prompts seen, and the running mean of the answer's divergence, in nats."""

    step: int
    seconds: float
    prompts: int
    divergence: float


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Sequence[int]],
    settings: Settings = Settings(),
    *,
    checkpoint: Path | None = None,
    save_seconds: float = 60.0,
    on_step: Callable[[Progress], object] | None = None,
    **exercises: Any,
) -> LearnedContext:
    """Train a context for `model`, whose own weights stay as they are.

    Parameters
    ----------
    texts
        Token ids of each text; nothing is labelled.
    checkpoint
        A file that the state is written to every `save_seconds`; if it exists, training goes on from it.
    on_step
        Called after every step.
    exercises
        Options of `Exercises`.

    Raises
    ------
    ValueError
        The model is not supported, no text is long enough, or the checkpoint is of another model or other settings.
    """
    check_model(model)
    drawn = Exercises(tokenizer, texts, seed=settings.seed, **exercises)
    random = torch.Generator().manual_seed(settings.seed)
    rotary = Rotary.of(model, position_count(model.config))
    first = drawn.draw()
    context = _first_values(model, rotary, first, settings.tokens).requires_grad_()
    optimizer = torch.optim.AdamW([context], lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    state = Progress(0, 0.0, 0, float("nan"))
    if checkpoint is not None and checkpoint.exists():
        state = _resume(checkpoint, model, settings, context, optimizer)
        for _ in range(state.step):  # the texts go on where they stopped
            drawn.draw()
            torch.rand((), generator=random)

    start = saved = monotonic()
    before = state.seconds
    while state.step < settings.steps and state.seconds < settings.seconds:
        exercise = drawn.draw()
        behind_prefix = torch.rand((), generator=random).item() < settings.behind_prefix
        answer, question = divergences(model, rotary, context, exercise, behind_prefix=behind_prefix)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(settings, state)
        (answer + QUESTION_WEIGHT * question).backward()
        torch.nn.utils.clip_grad_norm_([context], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        found = answer.item()
        running = found if state.step == 0 else 0.98 * state.divergence + 0.02 * found
        prompts = state.prompts + len(exercise.chunks)
        state = Progress(state.step + 1, before + monotonic() - start, prompts, running)
        if checkpoint is not None and monotonic() - saved >= save_seconds:
            _save(checkpoint, model, settings, context, optimizer, state)
            saved = monotonic()
        if on_step is not None:
            on_step(state)
    if checkpoint is not None:
        _save(checkpoint, model, settings, context, optimizer, state)
    return LearnedContext(context.detach().float().cpu().clone(), owner(model))


@torch.no_grad()
def _first_values(model: PreTrainedModel, rotary: list[Rotary], exercise: Exercise, tokens: int) -> Tensor:
    """Training begins with the keys and values of real text."""
    device = model.model.embed_tokens.weight.device
    text = exercise.chunks.flatten()[:tokens][None].to(device)
    positions = torch.arange(tokens, device=device)
    layers = []
    for rotate, (keys, values) in zip(rotary, keys_values(model, rotary, text, None, 0), strict=True):
        layers.append(torch.stack((rotate(keys, positions)[0], values[0])))
    return torch.stack(layers).float()


def _schedule(settings: Settings, state: Progress) -> float:
    """The share of the highest learning rate."""
    done = max(state.seconds / settings.seconds, state.step / settings.steps)
    warm = min(1.0, (state.step + 1) / 50)
    return warm * (0.05 + 0.95 * (1 + math.cos(math.pi * min(1.0, done))) / 2)


def _save(
    path: Path,
    model: PreTrainedModel,
    settings: Settings,
    context: Tensor,
    optimizer: torch.optim.Optimizer,
    state: Progress,
) -> None:
    """Write everything that training goes on from; the file appears whole or not at all."""
    tensors = {"context": context.detach().cpu()}
    tensors |= {f"optimizer.{name}": value.cpu() for name, value in optimizer.state[context].items()}
    metadata = {"model": fingerprint(model), "settings": repr(settings), "progress": json.dumps(asdict(state))}
    part = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    save_file(tensors, part, metadata)
    part.replace(path)


def _resume(
    path: Path, model: PreTrainedModel, settings: Settings, context: Tensor, optimizer: torch.optim.Optimizer
) -> Progress:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    tensors = load_file(path)
    if (metadata.get("model"), metadata.get("settings")) != (fingerprint(model), repr(settings)):
        raise ValueError(
            f"{path} is a checkpoint of another model or of other settings: remove it, or give another path"
        )
    with torch.no_grad():
        context.copy_(tensors.pop("context"))
    optimizer.state[context] = {
        name.removeprefix("optimizer."): value if name.endswith("step") else value.to(context.device)
        for name, value in tensors.items()
    }
    return Progress(**json.loads(metadata["progress"]))
