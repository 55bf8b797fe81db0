"""``ragkv store add``: documents whose keys and values are stored before anybody asks about them."""

from pathlib import Path
from typing import Annotated

import typer

from ragkv.models.load import load_model
from ragkv.rag.rag import INSTRUCTION
from ragkv.serving.documents import Placement, store_documents
from ragkv.store import KVStore
from ragkv.store.commands import Url, store

__all__ = ["store"]


@store.command("add")
def add_command(
    url: Url,
    documents: Annotated[list[Path], typer.Argument(help="Text, HTML and PDF files, or folders of such files.")],
    model: Annotated[str, typer.Option(help="smollm2, an embedded model, a local folder, or a hub id.")],
    format: Annotated[str, typer.Option(help="How they are stored: model, fp8, int8 or int4.")] = "model",
    context: Annotated[
        str | None, typer.Option(help="Compute chunks behind a learned context: learned (comes with ragkv), or a file.")
    ] = None,
    behind_prefix: Annotated[
        bool, typer.Option("--behind-prefix", help="Compute chunks behind the prompt's prefix, too.")
    ] = False,
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
        Placement.find(loaded, context, behind_prefix),
        instruction=instruction,
        chunk_tokens=chunk_tokens,
        progress=True,
    )
    typer.echo(f"{len(chunks)} chunks; {stored.written} segments written, {stored.bytes / 1e6:.1f} MB")
