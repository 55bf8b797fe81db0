"""Models of real shapes with random weights, and random prompts: for latency, nothing is said."""

from random import Random

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from ragkv.costs.shape import SHAPES
from ragkv.prompt import Prompt, split_ids

FAMILY: dict[str, type[PretrainedConfig]] = {
    "llama-3-8b": LlamaConfig,
    "mistral-7b": MistralConfig,
    "qwen2.5-7b": Qwen2Config,
    "llama-3-70b": LlamaConfig,
}
QUESTION, PREFIX = 64, 32


def random_model(name: str, positions: int, device: str = "auto", layers: int | None = None) -> PreTrainedModel:
    """A model of that shape with random weights, in bfloat16.

    Parameters
    ----------
    positions
        The longest prompt.
    device
        Where it goes; ``"auto"``: its layers over all GPUs, as many on each.
    layers
        So many layers instead of the shape's.

    Raises
    ------
    ValueError
        No such shape.
    """
    if name not in FAMILY:
        raise ValueError(f"unknown shape {name!r}: choose one of {', '.join(FAMILY)}")
    shape = next(values for known, values in SHAPES.items() if name in known.lower())
    options = dict(shape) | ({"num_hidden_layers": layers} if layers else {})
    config = FAMILY[name](**options, max_position_embeddings=positions, sliding_window=None, bos_token_id=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if device == "auto" else [device]
    parts: list[nn.Module] = [*model.model.layers]
    for index, layer in enumerate(parts):
        _fill(layer, devices[index * len(devices) // len(parts)])
    _fill(model.model.embed_tokens, devices[0])
    _fill(model.model.norm, devices[-1])
    _fill(model.lm_head, devices[-1])
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(devices[0])
    model.generation_config.eos_token_id = None  # random text has no end
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _fill(module: nn.Module, device: torch.device | str) -> None:
    """Random weights there; norms stay what they are."""
    module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in module.named_parameters():
        if weight.dim() > 1:
            weight.normal_(0.0, 0.02, generator=generator)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)


def random_prompt(
    vocabulary: int,
    tokens: int,
    chunk_tokens: int,
    *,
    prefix: int = PREFIX,
    question: int = QUESTION,
    bos: int | None = 1,
) -> Prompt:
    """A prompt of `tokens` random ids, behind `bos` if there is one: latency does not depend on what is said."""
    rng = Random(0)
    ids = [rng.randrange(3, vocabulary) for _ in range(tokens)]
    if bos is not None:
        ids[0] = bos
    return Prompt(ids[:prefix], split_ids(ids[prefix:-question], chunk_tokens), ids[-question:])
