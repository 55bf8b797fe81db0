"""What tests share: tiny random models of every family, random prompts, empty stores, and references."""

import os
from contextlib import nullcontext
from functools import lru_cache
from itertools import count
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Cache,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from ragkv import KVStore, Prompt, fused_prefill, precompute
from ragkv.contexts import LearnedContext
from ragkv.contexts.owner import owner
from ragkv.prompt import Segment
from ragkv.selectors import SELECTORS, get_selector
from ragkv.store import Layout

ROOT = Path(__file__).parents[1]  # the checkout
VOCAB = 200
BOS = 1
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": BOS,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
MULTIPLIERS = {  # Granite's
    "embedding_multiplier": 2.5,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.2,
    "logits_scaling": 3.0,
}
GEMMA3 = {"query_pre_attn_scalar": 20, "sliding_window": 512, "sliding_window_pattern": 2}
CONFIGS = {
    "llama": lambda **options: LlamaConfig(**SHAPE | options),
    "mistral": lambda **options: MistralConfig(**SHAPE | {"sliding_window": None} | options),
    "qwen2": lambda **options: Qwen2Config(**SHAPE | options),
    "qwen3": lambda **options: Qwen3Config(**SHAPE | options),
    "phi3": lambda **options: Phi3Config(**SHAPE | options),
    "granite": lambda **options: GraniteConfig(**SHAPE | MULTIPLIERS | options),
    "smollm3": lambda **options: SmolLM3Config(**SHAPE | {"no_rope_layer_interval": 2} | options),
    "olmo2": lambda **options: Olmo2Config(**SHAPE | options),
    "gemma3_text": lambda **options: Gemma3TextConfig(**SHAPE | GEMMA3 | options),
}
FAMILIES = list(CONFIGS)
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 10_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128},
}
RATIO_SELECTORS = sorted(name for name in SELECTORS if name not in ("full_prefill", "full_reuse", "cat"))


def make_model(family: str, seed: int = 0, **options: object) -> PreTrainedModel:
    """A random float32 model. Its norms and biases are not ones and zeros, so that a test fails if one is left out."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](**options)).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() < 2:
                weight.add_(0.3 * torch.randn_like(weight))
            else:
                weight.normal_(std=1.5 * weight.shape[1] ** -0.5)
        model.get_input_embeddings().weight.normal_()
    return model.requires_grad_(False)


@lru_cache
def shared_model(family: str) -> PreTrainedModel:
    """One model for all tests that do not change it."""
    return make_model(family)


def random_ids(rng: Random, length: int) -> list[int]:
    """Token ids, none of them of a special token."""
    return [rng.randrange(3, VOCAB) for _ in range(length)]


def random_prompt(
    rng: Random, chunks: tuple[int, ...] = (13, 7, 20), question: int = 6, prefix: int | None = 4
) -> Prompt:
    """A prompt of random ids, its parts of these lengths. The prefix begins with BOS; None leaves it out."""
    prefix_ids = [] if prefix is None else [BOS, *random_ids(rng, prefix - 1)]
    return Prompt(prefix_ids, [random_ids(rng, length) for length in chunks], random_ids(rng, question))


_numbers = count()  # of stores in memory


def memory_store() -> KVStore:
    """An empty store in memory; every call returns another one."""
    return KVStore(f"memory://ragkv-test-{os.getpid()}-{next(_numbers)}")


def random_context(model: PreTrainedModel, tokens: int = 3, seed: int = 0) -> LearnedContext:
    """A learned context of this model, of random numbers."""
    config, head_dim = model.config, model.model.layers[0].self_attn.head_dim
    shape = (config.num_hidden_layers, 2, config.num_key_value_heads, tokens, head_dim)
    return LearnedContext(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), owner(model))


def fuse(model: PreTrainedModel, prompt: Prompt, name: str, **options: object):
    """Precompute a prompt into an empty store, and its fused prefill by the selector of that name."""
    store = memory_store()
    precompute(model, [prompt], store)
    return fused_prefill(model, prompt, store, get_selector(name, **options))


@torch.inference_mode()
def plain(model: PreTrainedModel, prompt: Prompt):
    """The reference: the last logits and the cache of transformers' own forward over the whole prompt."""
    out = model(input_ids=torch.tensor([prompt.ids]), use_cache=True)
    return out.logits[:, -1], out.past_key_values


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest expected magnitude."""
    found, expected = found.double(), expected.double()
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def assert_caches_agree(found: Cache, expected: Cache, bound: float) -> None:
    """Keys and values of every layer have at most this relative error."""
    for mine, theirs in zip(found.layers, expected.layers, strict=True):
        assert relative_error(mine.keys, theirs.keys) <= bound
        assert relative_error(mine.values, theirs.values) <= bound


PROSE = (
    "The harbour lay quiet under the fog. Who had left the lantern burning, and why? Nobody knew!\n\n"
    'The keeper said "it was not me." He counted the boats: one, two, three.\nThen the bell rang; the tide had turned.'
)


@lru_cache
def byte_level_bpe(*special: str) -> PreTrainedTokenizerFast:
    """A small byte-level tokenizer, like those of Llama-3 and Qwen. It adds no special tokens to a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([PROSE], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=list(special), clean_up_tokenization_spaces=False
    )


SEGMENT = Segment((5, 6, 7, 8), (1,))  # four tokens behind one of context


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder, by their relative paths."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_all(store: KVStore, layout: Layout, segment: Segment = SEGMENT) -> list[torch.Tensor]:
    """Everything that is stored of a segment: its surprisal, and the keys and values of every layer."""
    stored = store.open(layout, segment)
    return [stored.surprisal(), *(stored.layer(i) for i in range(layout.layers))]


class Immediately:
    """A copying stream of a device that does everything at once."""

    def active(self):
        return nullcontext()

    def wait_for_computation(self):
        pass

    def record(self):
        return None

    def computation_waits(self, event):
        pass

    def uses(self, memory):
        pass
