"""Floating-point operations and bytes of a fused prefill."""

from ragkv.costs.shape import Shape
from ragkv.selectors import Selector
from ragkv.selectors.a3 import A3
from ragkv.selectors.probe import Probe

QUESTION = 32  # tokens of a question, about


def selection(shape: Shape, selector: Selector, tokens: int, question: int = QUESTION) -> float:
    """Floating-point operations of choosing, at most; what is computed of layers up to the choice is not in them."""
    if isinstance(selector, Probe):
        looking = min(selector.looking, selector.ratio / selector.hops) * tokens
        rows = selector.hops * question + (selector.hops - 1) * looking  # of all passes
        return shape.layers * rows * (2 * shape.layer_weights + 4 * shape.heads * shape.head_dim * tokens)
    products = 2 * shape.heads * shape.head_dim * question * tokens if isinstance(selector, A3) else 0.0
    gaps = 3 * shape.kv_heads * shape.head_dim * tokens if selector.compares else 0.0
    return products + gaps


def fused(shape: Shape, selector: Selector, tokens: int, question: int = QUESTION) -> float:
    """Floating-point operations of a fused prefill of `tokens` tokens, the last `question` of which ask."""
    before = min(selector.layer, shape.layers)
    asked = min(tokens, question) if selector.recomputes_question else 1
    chosen = selector.ratio * (tokens - asked) + asked
    mended = 2 * shape.layer_weights * chosen + 4 * shape.heads * shape.head_dim * chosen * tokens / 2
    return shape.prefill(tokens, tokens, before) + selection(shape, selector, tokens) + (shape.layers - before) * mended


def hops(selector: Selector) -> int:
    """Passes of its own that a selector makes before it chooses."""
    return getattr(selector, "hops", 0)


def moved(shape: Shape, selector: Selector, tokens: int, size: int = 2) -> float:
    """Bytes that a fused prefill moves through the GPU's memory at least, `size` a number.

    The layers' weights once a pass, those of the logits once, the prompt's keys and values into their places, and once
    a pass out of them.
    """
    passes = 1 + hops(selector)
    placed = 2 if selector.reuses else 1  # read where they were stored, and written
    return size * shape.weights_read(passes) + (placed + passes) * tokens * shape.bytes_per_token(size)
