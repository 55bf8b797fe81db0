"""Is what ragkv computes right? Prefills and decoding are compared with transformers', attention with PyTorch's."""

from random import Random

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ragkv.fusion.decoding import decode
from ragkv.fusion.prefill import Prefill, fused_prefill
from ragkv.models.attention import BACKENDS, sdpa
from ragkv.prompt import Prompt
from ragkv.selectors import get_selector
from ragkv.store import KVStore
from ragkv.store.precompute import precompute

LOGITS = 1e-5  # relative error of float32 logits that rounding explains
ATTENTION = 1e-2  # the same of attention in bfloat16
_SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "sliding_window": None,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}
_OPTIONS: dict[str, dict[str, object]] = {  # so that what makes a family different has an effect
    "granite": {
        "embedding_multiplier": 2.5,
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.2,
        "logits_scaling": 3.0,
    },
    "smollm3": {"no_rope_layer_interval": 2},
    "gemma3_text": {"query_pre_attn_scalar": 20, "sliding_window": 256, "sliding_window_pattern": 2},
}


def family_model(family: str) -> PreTrainedModel:
    """A random float32 model of two layers on the CPU; the same every time."""
    config = AutoConfig.for_model(family, **_SHAPE | _OPTIONS.get(family, {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=weight.shape[-1] ** -0.5)
            else:  # norms and biases: no ones and zeros, so that leaving one out shows
                weight.add_(torch.randn_like(weight) / 3)
    return model


def logits_error(model: PreTrainedModel) -> float:
    """Relative error of the last logits of a fused prefill at ratio 1, against transformers' own prefill."""
    prompt, prefill = _recompute_everything(model)
    ids = torch.tensor([prompt.ids], device=model.device)
    with torch.inference_mode():
        expected = model(ids, logits_to_keep=1).logits[:, -1]
    return _relative_error(prefill.logits, expected)


def same_answer(model: PreTrainedModel, tokens: int = 4) -> bool:
    """Whether decoding after that prefill gives the same `tokens` tokens as transformers' own generate."""
    prompt, prefill = _recompute_everything(model)
    ids = torch.tensor([prompt.ids], device=model.device)
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    answer = decode(model, prefill, max_new_tokens=tokens).ids
    return answer == expected[0, len(prompt.ids) :].tolist()


def attention_error(name: str) -> float:
    """Relative error of a backend's attention in bfloat16 on the GPU, against PyTorch's."""
    generator = torch.Generator("cuda").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    query = random(1, 8, 48, 64)
    key = random(1, 2, 192, 64)
    value = random(1, 2, 192, 64)
    positions = torch.arange(0, 192, 4, device="cuda")
    scaling = 0.125
    found = BACKENDS[name](query, key, value, positions, scaling)
    return _relative_error(found, sdpa(query, key, value, positions, scaling))


def _recompute_everything(model: PreTrainedModel) -> tuple[Prompt, Prefill]:
    """A prompt of random ids, and its fused prefill: all of it is stored, and all of it computed again."""
    rng = Random(0)
    vocabulary = min(model.config.vocab_size, 10_000)
    prefix, first, second, question = ([rng.randrange(3, vocabulary) for _ in range(n)] for n in (2, 40, 60, 10))
    prompt = Prompt(prefix, [first, second], question)
    store = KVStore("memory://ragkv-exactness")
    precompute(model, [prompt], store)
    return prompt, fused_prefill(model, prompt, store, get_selector("a3", ratio=1.0))


def _relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.float(), expected.float()
    return float((found - expected).norm() / expected.norm())
