"""Documents in, answers out: retrieval, reuse of stored chunks, and follow-up questions."""

from ragkv.rag.conversation import Answer
from ragkv.rag.rag import Rag, answer

__all__ = ["Answer", "Rag", "answer"]
