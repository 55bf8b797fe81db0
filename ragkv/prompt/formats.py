"""Plain text out of files of several formats."""

from collections.abc import Callable
from pathlib import Path

from ragkv.extras import extra
from ragkv.prompt.encoding import check_text
from ragkv.terminal import printable

TEXT = (".txt", ".md")
HTML = (".html", ".htm")
PDF = (".pdf",)
FORMATS = (*TEXT, *HTML, *PDF)
# HTML's tags within a line; all others begin a new one.
INLINE = frozenset(
    "a abbr b bdi bdo cite code data del dfn em font i ins kbd mark q s samp small span strong sub sup".split()
)
INLINE |= frozenset("time tt u var wbr".split())
_BREAK = "\0"


def read_file(file: Path) -> str:
    """The text of a file, by its suffix: the page's text of HTML, the text layer of PDF, anything else as UTF-8 text.

    Raises
    ------
    ValueError
        The file cannot be read, or is not what its suffix says.
    ImportError
        HTML or PDF without the packages that read them.
    """
    suffix = file.suffix.lower()
    if suffix in PDF:
        return _of_pdf(file)
    text = read_text(file)
    return _of_html(text) if suffix in HTML else text


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, see `decode_text`."""
    return decode_text(_opened(file, file.read_bytes), printable(str(file)))


def decode_text(data: bytes, name: str) -> str:
    """Decode the content of a UTF-8 file; `name` is what error messages call it.

    Raises
    ------
    ValueError
        It is not UTF-8, or not text; the message gives the line.
    """
    try:
        return checked(data.decode("utf-8-sig"), name)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{name}, line {line}: this is not UTF-8 text. Save the file as UTF-8") from None


def checked(text: str, name: str) -> str:
    """Return the text unless it cannot be encoded, or contains zero bytes as images, archives and programs do."""
    check_text(text, name)
    before, zero, _ = text.partition("\0")
    if zero:
        line = before.count("\n") + 1
        raise ValueError(f"{name}, line {line}: this is not text, it has a zero byte. Give plain text (.txt, .md)")
    return text


def _opened(file: Path, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except OSError as error:
        raise ValueError(f"{printable(str(file))} cannot be read ({error.strerror}): check its permissions") from error


def _of_html(text: str) -> str:
    with extra("documents", "reading HTML"):
        from bs4 import BeautifulSoup
    page = BeautifulSoup(text, "html.parser")
    for tag in page(["script", "style", "template", "noscript", "head"]):
        tag.decompose()
    for tag in page.find_all(True):
        if tag.name not in INLINE:
            tag.insert_before(_BREAK)
            tag.insert_after(_BREAK)
    lines = (" ".join(line.split()) for line in page.get_text().split(_BREAK))
    return "\n".join(line for line in lines if line)


def _of_pdf(file: Path) -> str:
    with extra("documents", "reading PDF"):
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    name = printable(str(file))
    _opened(file, lambda: file.open("rb").read(1))
    try:
        pages = [page.extract_text() for page in PdfReader(file).pages]
    except (PyPdfError, ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"{name} cannot be read as PDF ({error}): give its text as a .txt file") from error
    # What a font maps to no character comes out as lone surrogates or zero bytes, and is no text.
    text = "\n\n".join(pages).encode("utf-8", "ignore").decode().replace("\0", "")
    if not text.strip():
        raise ValueError(f"{name} has no text, only images: run it through text recognition (OCR) first")
    return text
