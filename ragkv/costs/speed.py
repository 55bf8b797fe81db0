"""How long the parts of a profile take at a machine's speed: arithmetic only. `ragkv.bench.speed` measures a speed.

`ragkv.costs.roofline` predicts single prefills on a GPU from a record of that GPU. This module is for planning: it
needs no record, also describes CPUs, and is meant to be right within a factor of two.
"""

from dataclasses import dataclass

from ragkv.costs.prefill import bytes_loaded, operations, precompute_operations, weight_bytes
from ragkv.costs.shape import Shape
from ragkv.selectors import Selector

CHECKED_GBS = 0.5  # files that are written or read and checked, in 1e9 bytes a second
FILE_SECONDS = 0.005  # of a file, whatever its size


@dataclass(frozen=True)
class Speed:
    """What one job reaches on a machine.

    Attributes
    ----------
    device
        What it was measured on, or assumed of.
    tflops
        Speed of matrix products, in 1e12 operations a second.
    memory_gbs
        Speed of reading weights from the device's memory, in 1e9 bytes a second.
    reuse_gbs
        Speed of bringing stored keys and values from host memory to their places in the cache, in 1e9 bytes a second.
    layer
        Seconds that a layer takes even if it computes next to nothing.
    """

    device: str
    tflops: float
    memory_gbs: float
    reuse_gbs: float
    layer: float

    def prefill(self, shape: Shape, selector: Selector, tokens: int, size: float) -> float:
        """Seconds of a fused prefill whose keys and values are in host memory.

        Parameters
        ----------
        tokens
            Tokens of the prompt.
        size
            Bytes of a number in the model's dtype.
        """
        computing = operations(shape, selector, tokens) / (self.tflops * 1e12)
        weights = weight_bytes(shape, selector, size) / (self.memory_gbs * 1e9)
        reusing = bytes_loaded(shape, selector, tokens, size) / (self.reuse_gbs * 1e9)
        return computing + weights + reusing + (1 + selector.passes) * shape.layers * self.layer

    def decoding(self, shape: Shape, size: float) -> float:
        """Seconds of one new token, or of one pass over a short answer."""
        return shape.weights * size / (self.memory_gbs * 1e9) + shape.layers * self.layer

    def chunks(self, shape: Shape, tokens: int, chunk_tokens: int, size: float) -> float:
        """Seconds of computing a document's chunks, each in a pass of its own.

        Parameters
        ----------
        tokens
            Tokens of the document.
        size
            Bytes of a number in the model's dtype.
        """
        passes = max(1.0, tokens / chunk_tokens)
        computing = precompute_operations(shape, tokens, chunk_tokens) / (self.tflops * 1e12)
        return computing + passes * self.decoding(shape, size)

    def files(self, shape: Shape, tokens: int, chunk_tokens: int, stored: float) -> float:
        """Seconds of writing the files of a document's chunks, or of reading and checking them.

        Parameters
        ----------
        stored
            Bytes of a number as stored.
        """
        size = tokens * shape.bytes_per_token(stored)
        return max(1.0, tokens / chunk_tokens) * FILE_SECONDS + size / (CHECKED_GBS * 1e9)
