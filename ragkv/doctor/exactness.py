"""Is what is computed here right? Prefills and decoding beside those of transformers, attention beside PyTorch's."""

from random import Random

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ragkv.fusion.decoding import decode
from ragkv.fusion.prefill import Prefill, fused_prefill
from ragkv.models.attention import BACKENDS, sdpa
from ragkv.prompt import Prompt
from ragkv.selectors import get_selector
from ragkv.store import KVStore
from ragkv.store.precompute import precompute

LOGITS, ATTENTION = 1e-5, 1e-2  # relative errors that rounding explains, in float32 and in bfloat16


def family_model(family: str) -> PreTrainedModel:
    """A random float32 model of two layers, on the CPU; the same every time."""
    sizes = dict(vocab_size=128, hidden_size=64, intermediate_size=96, head_dim=16, max_position_embeddings=256)
    heads = dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, sliding_window=None)
    config = AutoConfig.for_model(family, **sizes, **heads, bos_token_id=1, eos_token_id=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
        for weight in model.parameters():  # no ones and zeros, so that leaving a norm or a bias out shows
            weight.normal_(std=weight.shape[-1] ** -0.5) if weight.dim() > 1 else weight.add_(
                torch.randn_like(weight) / 3
            )
    return model


def logits_error(model: PreTrainedModel) -> float:
    """Relative error of a fused prefill's last logits at ratio 1 against transformers' own."""
    prompt, prefill = _prefilled(model)
    with torch.inference_mode():
        plain = model(torch.tensor([prompt.ids], device=model.device), logits_to_keep=1).logits[:, -1].float()
    return float((prefill.logits.float() - plain).norm() / plain.norm())


def same_answer(model: PreTrainedModel, tokens: int = 4) -> bool:
    """Whether as many tokens follow that prefill as transformers' own generate finds, and the same ones."""
    prompt, prefill = _prefilled(model)
    ids = torch.tensor([prompt.ids], device=model.device)
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return decode(model, prefill, max_new_tokens=tokens).ids == expected[0, len(prompt.ids) :].tolist()


def _prefilled(model: PreTrainedModel) -> tuple[Prompt, Prefill]:
    """A prompt of random ids and its prefill that reuses nothing in the end, though all of it was stored."""
    rng, vocabulary = Random(0), min(model.config.vocab_size, 10_000)
    prefix, first, second, question = ([rng.randrange(3, vocabulary) for _ in range(n)] for n in (2, 40, 60, 10))
    prompt, store = Prompt(prefix, [first, second], question), KVStore("memory://ragkv-exactness")
    precompute(model, [prompt], store)
    return prompt, fused_prefill(model, prompt, store, get_selector("a3", ratio=1.0))


def attention_error(name: str) -> float:
    """Relative error of a backend's attention in bfloat16 on the GPU, against PyTorch's."""
    options: dict = {"generator": torch.Generator("cuda").manual_seed(0), "device": "cuda", "dtype": torch.bfloat16}
    query, (key, value) = torch.randn(1, 8, 48, 64, **options), torch.randn(2, 1, 2, 192, 64, **options)
    positions = torch.arange(0, 192, 4, device="cuda")
    found, expected = (f(query, key, value, positions, 0.125).float() for f in (BACKENDS[name], sdpa))
    return float((found - expected).norm() / expected.norm())
