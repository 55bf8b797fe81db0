"""What training a context will take, from the model's configuration alone: nothing is loaded."""

from collections.abc import Iterator
from itertools import product
from math import prod, sqrt

from ragkv.contexts.exercises import MOST_QUESTIONS
from ragkv.contexts.training import Settings
from ragkv.costs.shape import Shape
from ragkv.costs.training import Batch, training_memory, training_operations

PREFIX = 32  # tokens of a typical prefix
Range = tuple[int, int]


def plan_lines(
    shape: Shape,
    settings: Settings,
    *,
    chunk_tokens: Range,
    document_tokens: Range,
    batch_tokens: int,
    questions: int,
    number_bytes: int,
    tflops: float,
) -> Iterator[str]:
    """Time and memory of a step with and without gradient checkpointing, a line each.

    Time is of chunks and documents of middling length, memory of those that take most.

    Parameters
    ----------
    number_bytes
        Bytes of a number of the model.
    tflops
        The speed that is assumed: 1e12 floating-point operations a second.
    """

    def batch(chunk: float, document: float) -> Batch:
        prompts = max(1, min(MOST_QUESTIONS, int(batch_tokens // document)))
        return Batch(
            prompts, round(max(document, chunk)), round(chunk), PREFIX, min(questions, MOST_QUESTIONS // prompts)
        )

    middle = batch(sqrt(prod(chunk_tokens)), sqrt(prod(document_tokens)))
    every = [batch(chunk, document) for chunk, document in product(chunk_tokens, document_tokens)]
    for recompute in (False, True):
        operations = settings.batches * training_operations(shape, middle, recompute=recompute)
        memory = max(training_memory(shape, one, size=number_bytes, recompute=recompute) for one in every)
        seconds = operations / (tflops * 1e12)
        name = "with --recompute" if recompute else "as it is"
        yield (
            f"{name}: {seconds:.2g} s a step, so at most {min(settings.steps, int(settings.seconds / seconds))} steps "
            f"in {settings.seconds / 60:g} minutes; about {memory / 1e9:.3g} GB of memory"
        )
