"""What training a learned context takes: floating-point operations and memory, from a model's shape alone.

A step runs a full prefill without gradients, every chunk behind the context, and the questions over all chunks; then
both of the latter backwards. As the weights are frozen, going backwards takes as many operations as going forwards, and
with gradient checkpointing twice as many. What is kept for going backwards takes most of the memory.
"""

from dataclasses import dataclass

from ragkv.costs.shape import Shape

FLOAT32 = 4
QUESTION = 64  # tokens of question and answer
LOGITS = 6  # tensors in float32 of the size of the question's logits, at the peak


@dataclass(frozen=True)
class Batch:
    """The prompts of one batch.

    Attributes
    ----------
    prompts
        How many.
    document, chunk, front
        Tokens of a prompt's chunks together, of a chunk, and of the prefix that is computed in front of each chunk.
    questions
        How many questions are asked about each document.
    """

    prompts: int
    document: int
    chunk: int
    front: int
    questions: int = 1

    @property
    def chunks(self) -> float:
        """The number of chunks of all prompts."""
        return self.prompts * self.document / self.chunk

    @property
    def asked(self) -> int:
        """Tokens of all questions."""
        return self.prompts * self.questions * QUESTION


def training_operations(shape: Shape, batch: Batch, *, recompute: bool) -> float:
    """Floating-point operations of one batch, forwards and backwards.

    Parameters
    ----------
    recompute
        Gradient checkpointing.
    """
    whole = batch.document + QUESTION
    logits = 2 * shape.hidden * shape.vocabulary * batch.asked
    question = batch.prompts * batch.questions * shape.prefill(QUESTION, whole, shape.layers)
    document = batch.prompts * shape.prefill(batch.document, batch.document, shape.layers)
    behind = batch.chunk + batch.front
    chunks = batch.chunks * shape.prefill(behind, behind, shape.layers)
    times = 3 if recompute else 2
    return (document + question + logits) + times * (chunks + question) + 2 * logits


def training_memory(shape: Shape, batch: Batch, *, size: int, recompute: bool) -> float:
    """Bytes at the peak of one batch, the model's weights included.

    Parameters
    ----------
    size
        Bytes of a number of the model.
    recompute
        Gradient checkpointing.
    """
    weights = size * (shape.weights + shape.hidden * shape.vocabulary)  # embeddings and head
    tokens = batch.prompts * batch.document + batch.asked
    attended = batch.prompts * batch.questions * (batch.document + QUESTION)  # each question has a copy of the document
    computed = batch.chunks * (batch.chunk + batch.front) + batch.asked
    logits = LOGITS * FLOAT32 * batch.asked * shape.vocabulary
    reused = 2 * tokens * shape.bytes_per_token(size)  # before and after their keys are rotated
    width = shape.heads * shape.head_dim

    # Of a layer: what both norms keep in float32; queries, keys and values of every head, and attention's output; the
    # MLP's three states. The question's attention keeps keys and values of the whole document for every head, too.
    of_layer = computed * (2 * FLOAT32 * shape.hidden + size * (4 * width + 3 * shape.intermediate))
    of_layer += attended * 2 * size * width
    inputs = shape.layers * computed * size * shape.hidden
    return weights + reused + logits + (inputs + of_layer if recompute else shape.layers * of_layer)
