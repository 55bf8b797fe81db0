"""Documents in, answers out."""

from ragkv.rag.answering import answer
from ragkv.rag.conversation import Answer
from ragkv.rag.rag import Rag

__all__ = ["Answer", "Rag", "answer"]
