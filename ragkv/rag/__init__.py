"""Documents in, answers out: retrieval, reuse of stored chunks, and follow-up questions."""

from ragkv.rag.conversation import Answer
from ragkv.rag.once import answer
from ragkv.rag.rag import Rag

__all__ = ["Answer", "Rag", "answer"]
