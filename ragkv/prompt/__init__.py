"""Text becomes a prompt of token ids: encoding, chat templates, chunks, documents."""

from ragkv.prompt.encoding import encode
from ragkv.prompt.prompt import Ids, Prompt, Segment, split_ids
from ragkv.prompt.templates import chat_parts

__all__ = ["Ids", "Prompt", "Segment", "chat_parts", "encode", "split_ids"]
