"""Training a learned context: fused prefill's next tokens are made to be full prefill's, with the model frozen.

For prompts made from plain text (`ragkv.contexts.exercises`), chunks are computed behind the context as `precompute`
does it, their keys are rotated to their places, and the question and its answer are run over them: plain reuse, with
gradients all the way to the context. The loss is the Kullback-Leibler divergence from the distributions that a full
prefill of the same prompt gives, along the answer and, with less weight, along the question.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.contexts.checkpoint import Progress, Training, resume, save_checkpoint
from ragkv.contexts.exercises import Exercise, Exercises
from ragkv.contexts.held_out import HeldOut
from ragkv.contexts.learned import LearnedContext
from ragkv.contexts.loss import divergences, full_prefill
from ragkv.contexts.owner import owner
from ragkv.models.checks import check_model
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
    batches
        How many batches of prompts a step adds the gradients of: larger steps in the same memory.
    behind_prefix
        The share of batches whose chunks are computed behind the prompt's prefix; in the others they are computed
        behind BOS alone. One context then serves both.
    check_every
        Steps between two looks at held-out texts.
    patience
        Training ends once this many looks in a row found no improvement.
    recompute
        Gradient checkpointing: far less memory, a third more time.
    seed
        Of the texts' order.
    """

    tokens: int = 16
    seconds: float = 540.0
    steps: int = 100_000
    learning_rate: float = 1e-2
    batches: int = 1
    behind_prefix: float = 0.5
    check_every: int = 100
    patience: int = 5
    recompute: bool = False
    seed: int = 0


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Sequence[int]],
    settings: Settings = Settings(),
    *,
    held_out: Sequence[Sequence[int]] = (),
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
    held_out
        Texts that are not trained on. With them, the context that was best on them is returned, and training ends
        early once it does not improve. Without them, the last one is returned.
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
    rotary = Rotary.of(model, position_count(model.config))
    drawn = Exercises(tokenizer, texts, seed=settings.seed, **exercises)
    if max(map(len, texts)) < settings.tokens:
        raise ValueError(f"no text has {settings.tokens} tokens, the context's length: give longer texts")
    random = torch.Generator().manual_seed(settings.seed)
    watched = HeldOut(model, rotary, tokenizer, held_out, **exercises) if held_out else None

    context = _first_values(model, rotary, max(texts, key=len)[: settings.tokens]).requires_grad_()
    optimizer = torch.optim.AdamW([context], lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    training = Training(context, context.detach(), optimizer, Progress())
    made_with = {"model": owner(model), "settings": repr(settings)}
    if checkpoint is not None and checkpoint.exists():
        resume(checkpoint, training, made_with)
        for _ in range(training.progress.step * settings.batches):  # the texts go on where they stopped
            drawn.draw()
            torch.rand((), generator=random)

    def next_batch() -> tuple[Exercise, bool]:
        exercise = drawn.draw()
        return exercise, torch.rand((), generator=random).item() < settings.behind_prefix

    start = saved = monotonic()
    before = training.progress.seconds
    while not _ended(settings, training.progress):
        batches = [next_batch() for _ in range(settings.batches)]
        _step(model, rotary, settings, training, batches)
        training.progress = replace(training.progress, seconds=before + monotonic() - start)
        if watched is not None and training.progress.step % settings.check_every == 0:
            _look(watched, training)
        if checkpoint is not None and monotonic() - saved >= save_seconds:
            save_checkpoint(checkpoint, training, made_with)
            saved = monotonic()
        if on_step is not None:
            on_step(training.progress)
    if watched is not None and training.progress.step % settings.check_every:
        _look(watched, training)  # the last steps, too
    if checkpoint is not None:
        save_checkpoint(checkpoint, training, made_with)
    best = context if watched is None else training.best
    return LearnedContext(best.detach().to("cpu", torch.bfloat16), owner(model))


def _ended(settings: Settings, progress: Progress) -> bool:
    too_long = progress.step >= settings.steps or progress.seconds >= settings.seconds
    return too_long or progress.waited >= settings.patience


def _step(
    model: PreTrainedModel,
    rotary: list[Rotary],
    settings: Settings,
    training: Training,
    batches: Sequence[tuple[Exercise, bool]],
) -> None:
    """One step of the optimizer, over batches with or without the prefix before their chunks."""
    progress = training.progress
    found = 0.0
    for exercise, behind_prefix in batches:
        answer, question = divergences(
            model, rotary, training.context, exercise, behind_prefix=behind_prefix, recompute=settings.recompute
        )
        ((answer + QUESTION_WEIGHT * question) / len(batches)).backward()
        found += answer.item() / len(batches)
    for group in training.optimizer.param_groups:
        group["lr"] = settings.learning_rate * _schedule(settings, progress)
    torch.nn.utils.clip_grad_norm_([training.context], 1.0)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)

    running = found if progress.step == 0 else 0.98 * progress.divergence + 0.02 * found
    prompts = progress.prompts + sum(len(exercise.chunks) for exercise, _ in batches)
    training.progress = replace(progress, step=progress.step + 1, prompts=prompts, divergence=running)


def _look(watched: HeldOut, training: Training) -> None:
    """Look at held-out texts, and keep the context if it is the best so far."""
    found = watched.divergence(training.context)
    progress = training.progress
    if found < progress.best:
        training.best = training.context.detach().clone()
        training.progress = replace(progress, held_out=found, best=found, waited=0)
    else:
        training.progress = replace(progress, held_out=found, waited=progress.waited + 1)


@torch.no_grad()
def _first_values(model: PreTrainedModel, rotary: list[Rotary], ids: Sequence[int]) -> Tensor:
    """Training begins with the keys and values of real text."""
    text = torch.tensor([ids], device=model.model.embed_tokens.weight.device)
    layers = full_prefill(model, rotary, text)
    return torch.stack([torch.stack((keys[0], values[0])) for keys, values in layers]).float()


def _schedule(settings: Settings, progress: Progress) -> float:
    """The share of the highest learning rate."""
    done = max(progress.seconds / settings.seconds, progress.step / settings.steps)
    warm = min(1.0, (progress.step + 1) / 50)
    return warm * (0.05 + 0.95 * (1 + math.cos(math.pi * min(1.0, done))) / 2)
