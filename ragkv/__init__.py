"""ragkv: reuse precomputed keys and values of retrieved chunks, recompute only what the question attends to."""

from ragkv.answering import answer
from ragkv.conversation import Answer
from ragkv.decoding import decode, generate, generate_inputs
from ragkv.fusion import Prefill, fused_prefill
from ragkv.models import load_model, load_tokenizer
from ragkv.precompute import precompute
from ragkv.prompt import Prompt, chat_parts, encode, split_ids
from ragkv.rag import Rag
from ragkv.store import KVStore, StoreError

__all__ = [
    "Answer",
    "KVStore",
    "Prefill",
    "Prompt",
    "Rag",
    "StoreError",
    "answer",
    "chat_parts",
    "decode",
    "encode",
    "fused_prefill",
    "generate",
    "generate_inputs",
    "load_model",
    "load_tokenizer",
    "precompute",
    "split_ids",
]
__version__ = "0.1.0"
