"""What a fused prefill needs: floating-point operations, bytes moved within the GPU's memory, bytes loaded."""

from ragkv.costs.shape import Shape
from ragkv.selectors import Selector

BF16_BYTES = 2  # bytes of a number in bfloat16
QUESTION = 32  # tokens of a typical question


def operations(shape: Shape, selector: Selector, tokens: int, question: int = QUESTION) -> float:
    """Floating-point operations of a fused prefill, choosing included.

    Parameters
    ----------
    tokens
        Tokens of the prompt.
    question
        How many of them, at the end, are the question.
    """
    layers_for_all = min(selector.layers[0], shape.layers)  # those below the selection layer
    asked = min(tokens, question) if selector.recomputes_question else 1
    recomputed = selector.ratio * (tokens - asked) + asked
    attention = 4 * shape.heads * shape.head_dim * recomputed * tokens / 2  # half of the keys stand before a token
    layer = 2 * shape.layer_weights * recomputed + attention
    choosing = selector.operations(shape, tokens, question)
    return shape.prefill(tokens, tokens, layers_for_all) + choosing + (shape.layers - layers_for_all) * layer


def precompute_operations(shape: Shape, tokens: float, chunk_tokens: int) -> float:
    """Floating-point operations of computing a document of `tokens` tokens chunk by chunk, ahead of any question."""
    chunks = max(1.0, tokens / chunk_tokens)
    return chunks * shape.prefill(tokens / chunks, tokens / chunks, shape.layers)


def weight_bytes(shape: Shape, selector: Selector, size: float = BF16_BYTES) -> float:
    """Bytes of weights that a prefill reads: the layers' in every pass, those of the logits once.

    Parameters
    ----------
    size
        Bytes of a number.
    """
    return size * shape.weights_read(1 + selector.passes)


def kv_bytes(
    shape: Shape, selector: Selector, tokens: int, size: float = BF16_BYTES, stored: float | None = None
) -> float:
    """Bytes of keys and values that a prefill reads and writes in the GPU's memory, at least.

    They are written to their places in the cache once and read in every pass. Reused ones are first read as stored.

    Parameters
    ----------
    size
        Bytes of a number in the cache.
    stored
        Bytes of a number as stored; None if it is the same.
    """
    passes = 1 + selector.passes
    first_read = (size if stored is None else stored) if selector.reuses else 0
    return tokens * shape.bytes_per_token(first_read + size * (1 + passes))


def bytes_moved(shape: Shape, selector: Selector, tokens: int, size: float = BF16_BYTES) -> float:
    """Bytes that a prefill moves through the GPU's memory at least: `weight_bytes` and `kv_bytes`."""
    return weight_bytes(shape, selector, size) + kv_bytes(shape, selector, tokens, size)


def bytes_loaded(shape: Shape, selector: Selector, tokens: int, stored: float = BF16_BYTES) -> float:
    """Bytes of keys and values that a prefill loads from the store.

    Layers up to the choice are computed for all tokens, so nothing of them is loaded. The selection layer itself is
    loaded if the selector compares its stored keys and values with the fresh ones.

    Parameters
    ----------
    stored
        Bytes of a number as stored, see `ragkv.store.quantize.number_size`.
    """
    if not selector.reuses:
        return 0.0
    computed = selector.layers[0] + (selector.observes and not selector.compares)  # layers
    return max(0.0, 1 - computed / shape.layers) * tokens * shape.bytes_per_token(stored)
