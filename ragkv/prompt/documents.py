"""Documents to answer questions from: texts, or text files, in chunks that know where they come from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ragkv.prompt import Ids
from ragkv.prompt.chunking import By, chunk_document
from ragkv.prompt.templates import encode

Documents = str | Path | Iterable[str | Path]
SUFFIXES = (".txt", ".md")


@dataclass(frozen=True)
class Document:
    """A text and its name: its file's, or its number among texts given as such."""

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
        What it says.
    ids
        Its token ids, and those of the blank line that sets it apart from the next chunk of a prompt.
    """

    document: str
    text: str
    ids: Ids


def read_documents(documents: Documents) -> list[Document]:
    """Documents from wherever they are, those without any text left out.

    Parameters
    ----------
    documents
        A folder (its .txt and .md files, those of folders inside it too, by name), a file, or a list: of texts as
        `str`, of folders and files as `Path`.

    Raises
    ------
    ValueError
        There is no document, no such file, or something that is not text; the message says which.
    """
    if not isinstance(documents, Iterable | Path) or isinstance(documents, bytes | bytearray | Mapping):
        raise ValueError(f"documents are of type {type(documents).__name__}: give a list of texts, or a folder")
    if isinstance(documents, str) and not _exists(documents):
        raise ValueError(f"there is no folder or file {documents[:80]!r}; texts are given as a list, [text, ...]")
    given = [Path(documents)] if isinstance(documents, str | Path) else list(documents)
    read = [found for number, one in enumerate(given, 1) for found in _read(one, number)]
    if not read:
        raise ValueError("there are no documents: give at least one text, or a folder with .txt or .md files")
    if not (kept := [document for document in read if document.text.strip()]):
        raise ValueError("there is no text in any of the documents")
    return kept


def _exists(name: str) -> bool:
    try:
        return bool(name.strip()) and Path(name).exists()
    except OSError:  # too long for a name: it is a text
        return False


def _read(given: object, number: int) -> list[Document]:
    if isinstance(given, str):
        if given.endswith(SUFFIXES) and "\n" not in given and Path(given).is_file():
            raise ValueError(f"document {number} is the name of a file, {given!r}: give Path({given!r}) to read it")
        return [Document(str(number), _checked(given, f"document {number}"))]
    if not isinstance(given, Path):
        raise ValueError(f"document {number} is of type {type(given).__name__}: give its text as str, or a Path")
    if given.is_file():
        return [Document(given.name, read_text(given))]
    if not given.is_dir():
        raise ValueError(f"there is no folder or file {given}")
    files = sorted(path for path in given.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    if not files:
        raise ValueError(f"no .txt or .md files in the folder {given}")
    return [Document(file.relative_to(given).as_posix(), read_text(file)) for file in files]


def read_text(file: Path) -> str:
    """A UTF-8 file's text, see `decode_text`."""
    return decode_text(file.read_bytes(), str(file))


def decode_text(data: bytes, name: str) -> str:
    """The text that a UTF-8 file called `name` holds.

    Raises
    ------
    ValueError
        It is not UTF-8, or holds what no text has; the message names the line.
    """
    try:
        return _checked(data.decode("utf-8-sig"), name)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{name}, line {line}: this is not UTF-8 text. Save the file as UTF-8") from None


def _checked(text: str, name: str) -> str:
    """The text, unless it has the zero bytes of images, archives and programs."""
    before, zero, _ = text.partition("\0")
    if zero:
        line = before.count("\n") + 1
        raise ValueError(f"{name}, line {line}: this is not text, it has a zero byte. Give plain text (.txt, .md)")
    return text


def chunk_documents(
    tokenizer: PreTrainedTokenizerBase, documents: Iterable[Document], *, by: By, tokens: int
) -> list[Chunk]:
    """All documents' chunks, of at most `tokens` tokens each and the blank line; see `ragkv.prompt.chunking`."""
    apart = tuple(encode(tokenizer, "\n\n"))
    return [
        Chunk(document.name, tokenizer.decode(ids).strip(), ids + apart)
        for document in documents
        for ids in chunk_document(tokenizer, document.text, by=by, tokens=tokens).chunks
    ]
