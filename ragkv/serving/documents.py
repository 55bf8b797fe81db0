"""Documents become prompts and stored chunks, in the same way in every process: otherwise nothing would be found."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.prompt import Prompt
from ragkv.prompt.documents import Chunk, Documents, chunk_documents, read_documents, whole_chunk
from ragkv.prompt.templates import Turn, chat_parts
from ragkv.rag.chunk_context import ChunkContext
from ragkv.store import KVStore
from ragkv.store.precompute import Precomputed, precompute


def make_prompt(
    tokenizer: PreTrainedTokenizerBase,
    instruction: str,
    documents: list[str],
    question: str,
    earlier: Sequence[Turn] = (),
) -> Prompt:
    """The prompt that asks a question about documents, each of which is one chunk.

    Earlier turns of the conversation are part of its prefix.

    Raises
    ------
    ValueError
        There is no document, one of them or the question is empty or not text, or the chat template refuses the turns.
    """
    if not isinstance(documents, list) or not documents:
        raise ValueError("'documents' must be a list of texts, with at least one")
    for number, text in enumerate(documents):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"'documents[{number}]' must be a text that is not empty")
    if not isinstance(question, str) or not question.strip():
        raise ValueError("'question' must be a text that is not empty")
    prefix, after = chat_parts(tokenizer, instruction, f"\n{question}", earlier=earlier)
    return Prompt(prefix, [whole_chunk(tokenizer, text).ids for text in documents], after)


def split_prompt(tokenizer: PreTrainedTokenizerBase, text: object, marker: object) -> Prompt:
    """The prompt whose text has a marker before its first chunk, between chunks, and after the last one.

    Chunks become what `make_prompt` makes of documents, so that stored documents are found. The texts before and after
    them stay as they are; no chat template is applied.

    Raises
    ------
    ValueError
        The prompt or the marker is not text, the marker occurs less than twice, or a chunk or the question is empty.
    """
    if not isinstance(marker, str) or not marker:
        raise ValueError(f"'marker' is {marker!r}: give the text that separates the parts of the prompt")
    if not isinstance(text, str):
        raise ValueError("a prompt whose parts are separated by a marker must be one text")
    parts = text.split(marker)
    if len(parts) < 3:
        raise ValueError(
            f"the parts do not add up: the prompt has {len(parts) - 1} of at least 2 markers {marker!r}. "
            "Put one before the first chunk, between chunks, and after the last one"
        )
    before, *chunks, question = parts
    for number, chunk in enumerate(chunks, 1):
        if not chunk.strip():
            raise ValueError(f"the parts do not add up: chunk {number} of {len(chunks)} is empty")
    if not question.strip():
        raise ValueError("the parts do not add up: there is no question after the last marker")
    prefix, after = chat_parts(tokenizer, before, question, chat=False)
    return Prompt(prefix, [whole_chunk(tokenizer, chunk).ids for chunk in chunks], after)


def store_documents(
    documents: Documents,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: KVStore,
    chunk_context: ChunkContext,
    *,
    instruction: str,
    chunk_tokens: int,
    progress: bool = False,
) -> tuple[list[Chunk], Precomputed]:
    """Cut documents into chunks, and store the keys and values of these and of the prefix.

    Raises
    ------
    ValueError
        There are no documents, or something is not text.
    StoreError
        The store cannot be written to.
    """
    cut = chunk_documents(tokenizer, read_documents(documents), by="paragraphs", tokens=chunk_tokens)
    chunks = [whole_chunk(tokenizer, chunk.text, chunk.document) for chunk in cut]  # as `make_prompt` makes them
    prefix, after = chat_parts(tokenizer, instruction, "\n?")  # the question is not part of what is stored
    prompts = [chunk_context(Prompt(prefix, [chunk.ids], after)) for chunk in chunks]
    return chunks, precompute(model, prompts, store, progress=progress)
