"""``ragkv store add``: documents whose keys and values are stored before anybody asks about them."""

from typing import Annotated

import typer

from ragkv.models.load import load_model
from ragkv.rag.arguments import BehindPrefixOption, ContextOption, DocumentsArgument, FormatOption, ModelOption
from ragkv.rag.chunk_context import ChunkContext
from ragkv.rag.rag import INSTRUCTION
from ragkv.serving.documents import store_documents
from ragkv.store import KVStore
from ragkv.store.commands import Url, store

__all__ = ["store"]


@store.command("add")
def add_command(
    url: Url,
    documents: DocumentsArgument,
    model: ModelOption,
    format: FormatOption = "model",
    context: ContextOption = None,
    behind_prefix: BehindPrefixOption = False,
    instruction: Annotated[
        str, typer.Option(help="The text before the documents, which is stored, too.")
    ] = INSTRUCTION,
    chunk_tokens: Annotated[int, typer.Option(min=1, help="The longest chunk.")] = 256,
) -> None:
    """Cut documents into chunks, and store their keys and values for a model."""
    loaded, tokenizer = load_model(model)
    chunks, stored = store_documents(
        documents,
        loaded,
        tokenizer,
        KVStore(url, format=format),
        ChunkContext.find(loaded, context, behind_prefix),
        instruction=instruction,
        chunk_tokens=chunk_tokens,
        progress=True,
    )
    typer.echo(f"{len(chunks)} chunks; {stored.written} segments written, {stored.bytes / 1e6:.1f} MB")
