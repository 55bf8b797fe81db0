"""Documents to answer questions from: texts or text files, and their chunks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ragkv.prompt import Ids
from ragkv.prompt.chunking import By, chunk_document
from ragkv.prompt.encoding import encode

Documents = str | Path | Iterable[str | Path]
SUFFIXES = (".txt", ".md")


@dataclass(frozen=True)
class Document:
    """A text and its name: the file it came from, or its number in a list of texts."""

    name: str
    text: str


@dataclass(frozen=True)
class Chunk:
    """A part of a document.

    Attributes
    ----------
    document
        The document's name.
    text
        The chunk's text.
    ids
        The chunk's token ids, followed by those of a blank line that separates it from the next chunk of a prompt.
    """

    document: str
    text: str
    ids: Ids


def read_documents(documents: Documents) -> list[Document]:
    """Read documents; those without any text are left out.

    Parameters
    ----------
    documents
        A folder (its .txt and .md files including subfolders, in order of name), a file, or a list: a `str` in it is
        a text, a `Path` in it is a folder or a file.

    Raises
    ------
    ValueError
        There are no documents, a file is missing, or something is not text; the message says which.
    """
    if not isinstance(documents, Iterable | Path) or isinstance(documents, bytes | bytearray | Mapping):
        raise ValueError(f"documents are of type {type(documents).__name__}: give a list of texts, or a folder")
    if isinstance(documents, str) and not _exists(documents):
        raise ValueError(f"there is no folder or file {documents[:80]!r}; texts are given as a list, [text, ...]")
    sources = [Path(documents)] if isinstance(documents, str | Path) else list(documents)

    read = [document for number, source in enumerate(sources, 1) for document in _read(source, number)]
    if not read:
        raise ValueError("there are no documents: give at least one text, or a folder with .txt or .md files")
    with_text = [document for document in read if document.text.strip()]
    if not with_text:
        raise ValueError("there is no text in any of the documents")
    return with_text


def _exists(name: str) -> bool:
    try:
        return bool(name.strip()) and Path(name).exists()
    except OSError:  # too long for a file name, so it is a text
        return False


def _read(source: object, number: int) -> list[Document]:
    if isinstance(source, str):
        if source.endswith(SUFFIXES) and "\n" not in source and Path(source).is_file():
            raise ValueError(f"document {number} is the name of a file, {source!r}: give Path({source!r}) to read it")
        return [Document(str(number), _checked(source, f"document {number}"))]
    if not isinstance(source, Path):
        raise ValueError(f"document {number} is of type {type(source).__name__}: give its text as str, or a Path")
    if source.is_file():
        return [Document(source.name, read_text(source))]
    if not source.is_dir():
        raise ValueError(f"there is no folder or file {source}")
    files = sorted(path for path in source.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    if not files:
        raise ValueError(f"no .txt or .md files in the folder {source}")
    return [Document(file.relative_to(source).as_posix(), read_text(file)) for file in files]


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, see `decode_text`."""
    return decode_text(file.read_bytes(), str(file))


def decode_text(data: bytes, name: str) -> str:
    """Decode the content of a UTF-8 file; `name` is what error messages call it.

    Raises
    ------
    ValueError
        It is not UTF-8, or not text; the message gives the line.
    """
    try:
        return _checked(data.decode("utf-8-sig"), name)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{name}, line {line}: this is not UTF-8 text. Save the file as UTF-8") from None


def _checked(text: str, name: str) -> str:
    """Return the text unless it contains zero bytes, as images, archives and programs do."""
    before, zero, _ = text.partition("\0")
    if zero:
        line = before.count("\n") + 1
        raise ValueError(f"{name}, line {line}: this is not text, it has a zero byte. Give plain text (.txt, .md)")
    return text


def chunk_documents(
    tokenizer: PreTrainedTokenizerBase, documents: Iterable[Document], *, by: By, tokens: int
) -> list[Chunk]:
    """Cut all documents into chunks of at most `tokens` tokens plus a blank line; see `ragkv.prompt.chunking`."""
    blank_line = tuple(encode(tokenizer, "\n\n"))
    chunks = []
    for document in documents:
        for ids in chunk_document(tokenizer, document.text, by=by, tokens=tokens).chunks:
            chunks.append(Chunk(document.name, tokenizer.decode(ids).strip(), ids + blank_line))
    return chunks
