"""Models of real shapes with random weights, and random prompts: good for measuring latency only."""

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
    Qwen3Config,
)

from ragkv.costs.shape import SHAPES
from ragkv.prompt import Prompt, split_ids

FAMILY: dict[str, type[PretrainedConfig]] = {
    "llama-3-8b": LlamaConfig,
    "mistral-7b": MistralConfig,
    "qwen2.5-7b": Qwen2Config,
    "qwen3-8b": Qwen3Config,
    "llama-3-70b": LlamaConfig,
}
PREFIX, QUESTION = 32, 64  # tokens


def random_model(name: str, positions: int, device: str = "auto", layers: int | None = None) -> PreTrainedModel:
    """A model with random weights in bfloat16.

    Parameters
    ----------
    name
        Its shape, one of `FAMILY`.
    positions
        Tokens of the longest prompt.
    device
        Where it goes; ``"auto"`` spreads its layers evenly over all GPUs.
    layers
        The number of layers, if it differs from the shape's.

    Raises
    ------
    ValueError
        There is no such shape.
    """
    if name not in FAMILY:
        raise ValueError(f"unknown shape {name!r}: choose one of {', '.join(FAMILY)}")
    shape = next(values for known, values in SHAPES.items() if name in known.lower())
    options = dict(shape) | ({"num_hidden_layers": layers} if layers else {})
    config = FAMILY[name](**options, max_position_embeddings=positions, sliding_window=None, bos_token_id=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if device == "auto" else [device]
    decoder_layers: list[nn.Module] = [*model.model.layers]
    for index, layer in enumerate(decoder_layers):
        _fill(layer, devices[index * len(devices) // len(decoder_layers)])
    _fill(model.model.embed_tokens, devices[0])
    _fill(model.model.norm, devices[-1])
    _fill(model.lm_head, devices[-1])
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(devices[0])
    model.generation_config.eos_token_id = None  # never stop early
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _fill(module: nn.Module, device: torch.device | str) -> None:
    """Random matrices on this device; norms are 1 and biases 0."""
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
    seed: int = 0,
) -> Prompt:
    """A prompt of `tokens` random ids, of which `bos` is the first unless it is None."""
    rng = Random(seed)
    ids = [rng.randrange(3, vocabulary) for _ in range(tokens)]
    if bos is not None:
        ids[0] = bos
    return Prompt(ids[:prefix], split_ids(ids[prefix:-question], chunk_tokens), ids[-question:])
