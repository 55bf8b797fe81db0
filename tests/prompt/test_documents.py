"""Documents from folders and texts, and chunks that keep the text they were cut from."""

import os
from itertools import pairwise

import pytest
from helpers import PROSE, byte_level_bpe
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, LOSSLESS

from ragkv.benchmarks.haystack import read_sentences
from ragkv.prompt.chunking import chunk_document
from ragkv.prompt.documents import Document, chunk_documents, read_documents, text_files
from ragkv.prompt.encoding import encode
from ragkv.prompt.formats import read_text
from ragkv.tiny.language import build_tokenizer

UNITS = ("tokens", "sentences", "paragraphs")
texts = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(["One. ", "two", "\n\n", "  ", "\U0001f600", "猫。", "e\u0301", "\t", "§"])).map("".join),
)


# text


@pytest.mark.parametrize("name", [*LOSSLESS, "embedded models"])
@pytest.mark.parametrize("by", UNITS)
@given(text=texts, size=st.integers(1, 9))
@example(text="\U0001f600\U0001f601", size=1)
@example(text="  One.\n\nTwo.  ", size=3)
def test_chunks_quote_the_document_and_leave_nothing_out(name, by, text, size):
    tokenizer = KINDS[name]()
    chunks = chunk_documents(tokenizer, [Document("x", text)], by=by, tokens=size)
    assert all(chunk.text == text[slice(*chunk.span)] == chunk.text.strip() for chunk in chunks)
    quoted = {place for chunk in chunks for place in range(*chunk.span)}
    without_tokens = not encode(tokenizer, text)
    assert without_tokens or all(place in quoted or text[place].isspace() for place in range(len(text)))
    assert all(a.span[0] <= b.span[0] for a, b in pairwise(chunks))


def test_a_word_that_the_tokenizer_does_not_know_stays_in_the_text():
    tokenizer = build_tokenizer()
    text = "Late the cook wrote VAR PIGA 414. Then Zaphod said: naïve!"
    (chunk,) = chunk_documents(tokenizer, [Document("x", text)], by="tokens", tokens=99)
    assert "<unk>" in tokenizer.decode(chunk.ids)
    assert (chunk.text, chunk.span) == (text, (0, len(text)))


@given(text=texts, size=st.integers(1, 9), limit=st.integers(1, 12))
def test_spans_of_a_truncated_document_surround_the_cut(text, size, limit):
    tokenizer = byte_level_bpe()
    chunked = chunk_document(tokenizer, text, by="sentences", tokens=size, max_tokens=limit)
    assert len(chunked.spans) == len(chunked.chunks)
    for ids, (start, stop) in zip(chunked.chunks, chunked.spans, strict=True):
        assert tokenizer.decode(ids).strip("\ufffd") in text[start:stop]


def test_passages_and_slow_tokenizers_have_no_spans():
    class Slow:
        is_fast = False
        unk_token_id = None

        def __call__(self, text, **options):
            return type("Encoded", (), {"input_ids": [ord(c) for c in text]})

        def decode(self, ids):
            return "".join(map(chr, ids))

    assert chunk_document(byte_level_bpe(), ["One.", "Two."]).spans is None
    (chunk,) = chunk_documents(Slow(), [Document("x", " One. ")], by="tokens", tokens=9)
    assert (chunk.text, chunk.span) == ("One.", None)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "the document is missing"),
        (["One.", None], r"passage 2 is missing \(null\)"),
        ([3], "passage 1 is of type int"),
        (["fine", "\ud800"], "passage 2, line 1: .* half of a surrogate pair"),
        ("fine\n\ud800", "the document, line 2: .* half of a surrogate pair"),
    ],
)
def test_documents_and_passages_must_be_text(document, message):
    with pytest.raises(ValueError, match=message):
        chunk_document(byte_level_bpe(), document)


@given(st.text(alphabet="a. !?\"')\u201d\u3002\n\t", max_size=40))
def test_sentences_end_after_marks_and_space(text):
    """Compared with a plain reading of the text, character by character."""
    ends, i = [], 0
    while i < len(text):
        if text[i] == "\n" or text[i] in "\u3002\uff01\uff1f":
            same = "\n" if text[i] == "\n" else "\u3002\uff01\uff1f"
            while i < len(text) and text[i] in same:
                i += 1
            ends.append(i)
        elif text[i] in ".!?":
            while i < len(text) and text[i] in ".!?":
                i += 1
            j = i
            while j < len(text) and text[j] in "\"')]\u201d":
                j += 1
            if j < len(text) and text[j].isspace():
                while j < len(text) and text[j].isspace():
                    j += 1
                ends.append(j)
                i = j
        else:
            i += 1
    from ragkv.prompt.chunking import _UNIT_ENDS

    assert [match.end() for match in _UNIT_ENDS["sentences"].finditer(text)] == ends


@pytest.mark.parametrize("text", ["." * 400_000, '."' * 200_000, "\n" * 400_000, "\n" + " " * 400_000, "?!" * 200_000])
@pytest.mark.parametrize("by", ["sentences", "paragraphs"])
def test_long_runs_are_read_once(text, by):
    """With a quadratic expression, each of these would take hours."""
    from ragkv.prompt.chunking import _unit_ends

    assert len(_unit_ends(text, [(0, len(text))], by)) <= 1


# folders


def test_suffixes_in_any_case(tmp_path):
    for name in ("a.TXT", "b.Md", "c.txt", "d.docx", "e.DOCX", "f"):
        (tmp_path / name).write_text(f"{name} text.")
    with pytest.warns(UserWarning, match=r"not read: 1 without a suffix, 2 \.docx \("):
        assert [d.name for d in read_documents(tmp_path)] == ["a.TXT", "b.Md", "c.txt"]
    assert read_sentences(tmp_path) == ["a.TXT text.", "b.Md text.", "c.txt text."]


PAGE = """<!doctype html><html><head><title>Not this</title><style>p {}</style></head>
<body><h1>The harbour</h1><p>It lay <b>quiet</b> &amp; dark.</p>
<script>var no = 1;</script><p>caf\u00e9</p></body></html>"""


def pdf(*lines):
    """A PDF of one page with these lines."""
    shown = " ".join(f"({line}) Tj 0 -20 Td" for line in lines)
    content = f"BT /F1 12 Tf 50 700 Td {shown} ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /Contents 4 0 R /MediaBox [0 0 600 800] "
        "/Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, offsets = "%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    end = f"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF"
    return f"{body}xref\n0 6\n0000000000 65535 f \n{table}{end}".encode()


def test_pages_and_pdfs_are_read_as_their_text(tmp_path):
    (tmp_path / "a.html").write_text(PAGE, encoding="utf-8")
    (tmp_path / "b.PDF").write_bytes(pdf("The harbour lay quiet.", "Nobody knew."))
    page, file = read_documents(tmp_path)
    assert page.text == "The harbour\nIt lay quiet & dark.\ncaf\u00e9"
    assert [line.strip() for line in file.text.splitlines()] == ["The harbour lay quiet.", "Nobody knew."]


@pytest.mark.parametrize(
    ("data", "said"),
    [(pdf(), "has no text, only images"), (b"not a pdf", "cannot be read as PDF"), (b"", "cannot be read as PDF")],
)
def test_what_is_no_text_in_a_pdf_is_said(tmp_path, data, said):
    (tmp_path / "a.pdf").write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.pdf {said}"):
        read_documents(tmp_path / "a.pdf")


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt~",
        "notes~.txt",
        "~$notes.md",
        "#notes.txt#",
        "#notes.txt",
        ".notes.txt",
        "._notes.txt",
        ".#notes.txt",
        ".ipynb_checkpoints/notes-checkpoint.txt",
        ".git/notes.md",
        "inner/.trash/notes.md",
        "old~/notes.md",
    ],
)
def test_backups_and_hidden_files_are_left_out(tmp_path, name):
    (tmp_path / "notes.txt").write_text("The notes.")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("Not these.")
    assert [d.name for d in read_documents(tmp_path)] == ["notes.txt"]
    assert read_sentences(tmp_path) == ["The notes."]


def test_a_folder_in_a_hidden_folder_can_be_given(tmp_path):
    inner = tmp_path / ".hidden" / "notes"
    inner.mkdir(parents=True)
    (inner / "a.txt").write_text("The notes.")
    assert [d.name for d in read_documents(inner)] == ["a.txt"]
    assert [d.name for d in read_documents([inner / "a.txt"])] == ["a.txt"]


def test_what_is_no_file_is_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("The notes.")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo.txt")
    assert text_files(tmp_path) == [tmp_path / "a.txt"]
    with pytest.raises(ValueError, match=r"there is no folder or file .*fifo\.txt"):
        read_documents(tmp_path / "fifo.txt")


def test_a_folder_or_file_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("The notes.")

    def denied(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path / "inner"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", denied)
        with pytest.raises(ValueError, match=r"the folder .*inner cannot be listed \(Permission denied\)"):
            read_documents(tmp_path)
    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    with pytest.raises(ValueError, match=r"a\.txt cannot be read \(Permission denied\)"):
        read_text(tmp_path / "a.txt")


def test_lone_surrogates_in_a_document_are_named():
    with pytest.raises(ValueError, match=r"document 2, line 3: .* half of a surrogate pair"):
        read_documents(["fine", "one\ntwo\nthr\udceee"])


def test_the_name_of_a_file_in_any_case_is_not_a_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "NOTES.TXT").write_text("The notes.")
    with pytest.raises(ValueError, match="give Path"):
        read_documents(["NOTES.TXT"])


def test_prose_is_quoted_word_for_word():
    longest = max(len(encode(byte_level_bpe(), part)) for part in PROSE.split("\n\n")) + 2
    chunks = chunk_documents(byte_level_bpe(), [Document("x", PROSE)], by="paragraphs", tokens=longest)
    assert [chunk.text for chunk in chunks] == PROSE.split("\n\n")


def test_names_that_a_terminal_would_act_upon_are_escaped(tmp_path):
    (tmp_path / "a\x1b[31m\n.txt").write_text("The notes.")
    (tmp_path / os.fsdecode(b"b\xff.txt")).write_text("The notes.")
    (tmp_path / "c é 猫.txt").write_text("The notes.")
    assert [d.name for d in read_documents(tmp_path)] == ["a\\x1b[31m\\n.txt", "b\\udcff.txt", "c é 猫.txt"]
    (tmp_path / "d\x1b.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"/d\\x1b\.txt, line 1: this is not UTF-8"):
        read_documents(tmp_path / "d\x1b.txt")
