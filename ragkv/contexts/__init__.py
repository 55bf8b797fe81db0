"""Learned contexts: a few trained keys and values that chunks are computed behind, so that reuse loses less."""

from ragkv.contexts.learned import LearnedContext

__all__ = ["LearnedContext"]
