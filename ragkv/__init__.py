"""ragkv: reuse precomputed keys and values of retrieved chunks, recompute only what the question attends to."""

from importlib import import_module
from typing import TYPE_CHECKING

from ragkv.version import __version__

if TYPE_CHECKING:
    from ragkv.fusion.decoding import decode, generate, generate_inputs
    from ragkv.fusion.prefill import Prefill, fused_prefill, fused_prefills
    from ragkv.fusion.sampling import Sampling
    from ragkv.models.load import load_model, load_tokenizer
    from ragkv.prompt import Prompt, chat_parts, encode, split_ids
    from ragkv.rag import Answer, Rag, answer
    from ragkv.store import KVStore, StoreError
    from ragkv.store.precompute import precompute

_HOMES = {  # where each public name is defined; a module is imported when one of its names is first used
    "ragkv.fusion.decoding": ("decode", "generate", "generate_inputs"),
    "ragkv.fusion.prefill": ("Prefill", "fused_prefill", "fused_prefills"),
    "ragkv.fusion.sampling": ("Sampling",),
    "ragkv.models.load": ("load_model", "load_tokenizer"),
    "ragkv.prompt": ("Prompt", "chat_parts", "encode", "split_ids"),
    "ragkv.rag": ("Answer", "Rag", "answer"),
    "ragkv.store": ("KVStore", "StoreError"),
    "ragkv.store.precompute": ("precompute",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Answer",
    "KVStore",
    "Prefill",
    "Prompt",
    "Rag",
    "Sampling",
    "StoreError",
    "__version__",
    "answer",
    "chat_parts",
    "decode",
    "encode",
    "fused_prefill",
    "fused_prefills",
    "generate",
    "generate_inputs",
    "load_model",
    "load_tokenizer",
    "precompute",
    "split_ids",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
