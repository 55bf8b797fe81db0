"""Documents to answer questions from: texts or text files, and their chunks."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ragkv.prompt import Ids
from ragkv.prompt.chunking import By, chunk_document
from ragkv.prompt.encoding import encode
from ragkv.prompt.formats import FORMATS, TEXT, checked, read_file
from ragkv.terminal import printable

Documents = str | Path | Iterable[str | Path]


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
        The chunk's text as it is in the document, without white space at its ends. Without character offsets (a slow
        tokenizer), its decoded ids.
    ids
        The chunk's token ids, followed by those of a blank line that separates it from the next chunk of a prompt.
    span
        The (start, stop) characters of `text` in the document; None without character offsets.
    """

    document: str
    text: str
    ids: Ids
    span: tuple[int, int] | None = None


def read_documents(documents: Documents) -> list[Document]:
    """Read documents; those without any text are left out.

    Parameters
    ----------
    documents
        A folder (without what `text_files` leaves out), a file, or a list: a `str` in it is a text, a `Path` in it is a
        folder or a file.
        Files are read by `ragkv.prompt.formats.read_file`; a warning counts those of other formats in a folder.

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
        raise ValueError("there are no documents: give at least one text, or a folder with text files")
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
        if source.lower().endswith(FORMATS) and "\n" not in source and Path(source).is_file():
            raise ValueError(f"document {number} is the name of a file, {source!r}: give Path({source!r}) to read it")
        return [Document(str(number), checked(source, f"document {number}"))]
    if not isinstance(source, Path):
        raise ValueError(f"document {number} is of type {type(source).__name__}: give its text as str, or a Path")
    if source.is_file():
        return [Document(printable(source.name), read_file(source))]
    if not source.is_dir():
        raise ValueError(f"there is no folder or file {source}")
    every = _files(source, subfolders=True)
    files = _with_suffix(every, FORMATS)
    if not files:
        raise ValueError(f"no {', '.join(FORMATS)} files in the folder {source}")
    _tell_what_is_left_out(source, every)
    return [Document(printable(file.relative_to(source).as_posix()), read_file(file)) for file in files]


def text_files(folder: Path, *, subfolders: bool = True) -> list[Path]:
    """The .txt and .md files of a folder, in order of name.

    Hidden files and editors' backups are left out, and so is what lies in such folders: names that begin with ``.``,
    ``~`` or ``#``, or end with ``~`` before or after the suffix (``.ipynb_checkpoints``, ``~$notes.md``).

    Raises
    ------
    ValueError
        A folder cannot be listed.
    """
    return _with_suffix(_files(folder, subfolders=subfolders), TEXT)


def _with_suffix(files: list[Path], suffixes: tuple[str, ...]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in suffixes]


def _files(folder: Path, *, subfolders: bool) -> list[Path]:
    """All files of a folder but the hidden ones, in order of name."""

    def fail(error: OSError) -> None:
        raise ValueError(f"the folder {error.filename} cannot be listed ({error.strerror}): check its permissions")

    files = []
    for path, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if subfolders and not _is_left_out(name)]
        files += [Path(path, name) for name in names if not _is_left_out(name)]
    return sorted(file for file in files if file.is_file())


def _tell_what_is_left_out(folder: Path, files: list[Path]) -> None:
    """Warn of files of other formats: an answer that is only in them cannot be found."""
    others = Counter(file.suffix.lower() for file in files)
    counts = [
        f"{count} {printable(suffix) or 'without a suffix'}"
        for suffix, count in sorted(others.items())
        if suffix not in FORMATS
    ]
    if counts:
        kinds = ", ".join(FORMATS)
        warnings.warn(
            f"files of {printable(str(folder))} that are not read: {', '.join(counts)} (read are {kinds})", stacklevel=4
        )


def _is_left_out(name: str) -> bool:
    return name.startswith((".", "~", "#")) or name.endswith("~") or Path(name).stem.endswith("~")


def chunk_documents(
    tokenizer: PreTrainedTokenizerBase, documents: Iterable[Document], *, by: By, tokens: int
) -> list[Chunk]:
    """Cut all documents into chunks of at most `tokens` tokens plus a blank line; see `ragkv.prompt.chunking`."""
    blank_line = tuple(encode(tokenizer, "\n\n"))
    chunks = []
    for document in documents:
        chunked = chunk_document(tokenizer, document.text, by=by, tokens=tokens)
        spans = chunked.spans if chunked.spans is not None else [None] * len(chunked.chunks)
        for ids, span in zip(chunked.chunks, spans, strict=True):
            if span is None:
                text = tokenizer.decode(ids).strip()
            else:
                text, span = _stripped(document.text, *span)
            chunks.append(Chunk(document.name, text, ids + blank_line, span))
    return chunks


def _stripped(text: str, start: int, stop: int) -> tuple[str, tuple[int, int]]:
    """The characters of a span without white space at its ends, and their own span."""
    part = text[start:stop]
    start += len(part) - len(part.lstrip())
    part = part.strip()
    return part, (start, start + len(part))


def whole_chunk(tokenizer: PreTrainedTokenizerBase, text: str, name: str = "given") -> Chunk:
    """A text as one chunk, however long it is."""
    part, span = _stripped(checked(text, f"the chunk {text[:20]!r}"), 0, len(text))
    return Chunk(name, part, (*encode(tokenizer, part), *encode(tokenizer, "\n\n")), span)
