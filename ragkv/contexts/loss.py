"""The loss that a context is trained with: how far plain reuse behind it is from a full prefill, with gradients.

Chunks are computed behind the context as `ragkv.models.segment_pass` does it, their keys are rotated to their places,
and the question and its answer are run over them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ragkv.contexts.exercises import Exercise
from ragkv.models import decoder
from ragkv.models.decoder import KV
from ragkv.models.rotary import Rotary


def divergences(
    model: PreTrainedModel,
    rotary: list[Rotary],
    context: Tensor,
    exercise: Exercise,
    *,
    behind_prefix: bool,
    recompute: bool = False,
) -> tuple[Tensor, Tensor]:
    """How far plain reuse behind the context is from a full prefill, in nats.

    Parameters
    ----------
    context
        ``(layers, 2, kv_heads, tokens, head_dim)`` on the model's device; gradients reach it.
    recompute
        Keep only each layer's input, keys and values for the backward pass, which computes each layer again
        (gradient checkpointing). It takes far less memory and about a third more time.

    Returns
    -------
    answer, question
        Mean Kullback-Leibler divergences of the next token's distribution, over the tokens of the answer and over those
        of the question.
    """
    device = model.model.embed_tokens.weight.device
    prefix = torch.tensor([exercise.prefix], dtype=torch.long, device=device)
    chunks, asked = exercise.chunks.to(device), exercise.question.to(device)
    prompts = len(chunks)
    document = torch.cat((prefix.expand(prompts, -1), chunks.flatten(1)), dim=1)
    if exercise.open:
        unanswered = torch.cat((document.repeat_interleave(exercise.questions, dim=0), asked), dim=1)
        asked = torch.cat((asked, _answers(model, unanswered)), dim=1)

    with torch.no_grad():
        whole = full_prefill(model, rotary, document)
        expected = _logits(model, rotary, whole, asked, recompute=False)[:, :-1]
    front = prefix if behind_prefix else prefix[:, :1]
    stored = _stored(model, rotary, context, front, chunks, recompute=recompute)
    reused = _behind(whole, prefix.shape[1], stored, rotary)
    found = _logits(model, rotary, reused, asked, recompute=recompute)[:, :-1]

    expected, found = expected.float().log_softmax(-1), found.float().log_softmax(-1)
    each = (expected.exp() * (expected - found)).sum(-1)  # (questions of all prompts, tokens)
    answer = exercise.answer - 1  # the last token of the question gives the answer's first
    return each[:, answer:].mean(), each[:, :answer].mean()


def full_prefill(model: PreTrainedModel, rotary: list[Rotary], ids: Tensor) -> list[KV]:
    """Rotated keys, and values, of each layer for a batch of token ids, ``(batch, tokens)``."""
    positions = torch.arange(ids.shape[1], device=ids.device)
    placed: list[KV] = []

    def place(index: int, fresh: KV) -> KV:
        keys, values = fresh
        placed.append((rotary[index](keys, positions), values))
        return placed[-1]

    _through(model, rotary, decoder.embed(model, ids), positions, place, recompute=False)
    return placed


def _stored(
    model: PreTrainedModel, rotary: list[Rotary], context: Tensor, front: Tensor, chunks: Tensor, *, recompute: bool
) -> list[KV]:
    """Keys, before rotation, and values of all chunks of a prompt side by side, each computed on its own."""
    prompts, count, _ = chunks.shape
    ids = torch.cat((front.expand(prompts * count, -1), chunks.flatten(0, 1)), dim=1)
    computed = keys_values(model, rotary, ids, context, front.shape[1], recompute=recompute)

    def side_by_side(states: Tensor) -> Tensor:
        return states.unflatten(0, (prompts, count)).transpose(1, 2).flatten(2, 3)

    return [(side_by_side(keys), side_by_side(values)) for keys, values in computed]


def _behind(whole: Sequence[KV], prefix: int, stored: Sequence[KV], rotary: list[Rotary]) -> list[KV]:
    """The prefix of a full prefill, and behind it the stored keys, rotated to their places, and values."""
    joined = []
    first_keys, _ = stored[0]
    positions = torch.arange(prefix, prefix + first_keys.shape[2], device=first_keys.device)
    for rotate, (whole_keys, whole_values), (keys, values) in zip(rotary, whole, stored, strict=True):
        keys = torch.cat((whole_keys[:, :, :prefix], rotate(keys, positions)), dim=2)
        values = torch.cat((whole_values[:, :, :prefix], values), dim=2)
        joined.append((keys, values))
    return joined


def keys_values(
    model: PreTrainedModel,
    rotary: list[Rotary],
    ids: Tensor,
    context: Tensor,
    skip: int,
    *,
    recompute: bool = False,
) -> list[KV]:
    """Keys (before rotation) and values of each layer for a batch of token ids, computed behind a learned context.

    Parameters
    ----------
    ids
        ``(batch, tokens)``.
    context
        ``(layers, 2, kv_heads, context tokens, head_dim)``.
    skip
        How many tokens at the beginning are left out of the result.
    """
    ahead = context.shape[3]
    positions = torch.arange(ahead, ahead + ids.shape[1], device=ids.device)

    def place(index: int, fresh: KV) -> KV:
        keys, values = fresh
        rotated = rotary[index](keys, positions)
        front = (states.to(keys.dtype).expand(len(keys), -1, -1, -1) for states in context[index])
        front_keys, front_values = front
        return torch.cat((front_keys, rotated), dim=2), torch.cat((front_values, values), dim=2)

    _, fresh = _through(model, rotary, decoder.embed(model, ids), positions, place, recompute=recompute)
    return [(keys[:, :, skip:], values[:, :, skip:]) for keys, values in fresh]


def _logits(
    model: PreTrainedModel, rotary: list[Rotary], reused: Sequence[KV], asked: Tensor, *, recompute: bool
) -> Tensor:
    """Logits of the questions' tokens, which stand behind the reused keys and values of their documents."""
    documents, _, start, _ = reused[0][0].shape
    questions = len(asked) // documents
    positions = torch.arange(start, start + asked.shape[1], device=asked.device)

    def place(index: int, fresh: KV) -> KV:
        keys, values = fresh
        before_keys, before_values = (states.repeat_interleave(questions, dim=0) for states in reused[index])
        rotated = rotary[index](keys, positions)
        return torch.cat((before_keys, rotated), dim=2), torch.cat((before_values, values), dim=2)

    hidden, _ = _through(model, rotary, decoder.embed(model, asked), positions, place, recompute=recompute)
    return decoder.logits(model, hidden)


def _through(
    model: PreTrainedModel,
    rotary: list[Rotary],
    hidden: Tensor,
    positions: Tensor,
    place: Callable[[int, KV], KV],
    *,
    recompute: bool,
) -> tuple[Tensor, list[KV]]:
    """All layers over a batch, ``(batch, tokens, hidden)``, whose tokens are the last ones that they attend to.

    Returns
    -------
    hidden
        The last layer's output.
    fresh
        Each layer's keys, before rotation, and values of these tokens.
    """

    def run(index: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fresh: list[Tensor] = []

        def place_and_keep(of_layer: KV) -> KV:
            fresh.extend(of_layer)
            return place(index, of_layer)

        layer = model.model.layers[index]
        hidden, _ = decoder.run_layer(layer, hidden, positions, rotary[index], place_and_keep, _attend)
        keys, values = fresh
        return hidden, keys, values

    kept = []
    for index in range(len(model.model.layers)):
        if recompute and torch.is_grad_enabled():
            hidden, keys, values = checkpoint(run, index, hidden, use_reentrant=False)
        else:
            hidden, keys, values = run(index, hidden)
        kept.append((keys, values))
    return hidden, kept


def _attend(query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scaling: float) -> Tensor:
    """Attention of the last tokens, with a backward pass; see `ragkv.models.attention` for the arguments."""
    mask = causal_lower_right(query.shape[2], key.shape[2])
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


@torch.no_grad()
def _answers(model: PreTrainedModel, prompts: Tensor, tokens: int = 16) -> Tensor:
    """The model's own answers, ``(prompts, tokens)``: greedy, and all of one length."""
    whole = model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return whole[:, prompts.shape[1] :]
