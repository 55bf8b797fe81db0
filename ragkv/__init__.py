"""ragkv: reuse precomputed keys and values of retrieved chunks, recompute only what the question attends to."""

from ragkv.decoding import decode, generate
from ragkv.fusion import Prefill, fused_prefill
from ragkv.models import load_model, load_tokenizer
from ragkv.precompute import precompute
from ragkv.prompt import Prompt, chat_parts, encode, split_ids
from ragkv.store import KVStore, StoreError

__all__ = [
    "KVStore",
    "Prefill",
    "Prompt",
    "StoreError",
    "chat_parts",
    "decode",
    "encode",
    "fused_prefill",
    "generate",
    "load_model",
    "load_tokenizer",
    "precompute",
    "split_ids",
]
__version__ = "0.1.0"
