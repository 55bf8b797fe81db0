"""Text becomes a prompt of token ids: chat templates, chunks, documents."""

from ragkv.prompt.prompt import Ids, Prompt, Segment, split_ids
from ragkv.prompt.templates import chat_parts, encode

__all__ = ["Ids", "Prompt", "Segment", "chat_parts", "encode", "split_ids"]
