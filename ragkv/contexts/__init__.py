"""Learned contexts: a few trained keys and values that chunks are computed behind, so that reuse loses less."""

from ragkv.contexts.find import find_context
from ragkv.contexts.learned import LearnedContext

__all__ = ["LearnedContext", "find_context"]
