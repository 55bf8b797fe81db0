"""The highlighted document is the document's text, marked where it was recomputed, with its own markup escaped."""

import re
from html import unescape

import pytest
import torch
from helpers import byte_level_bpe
from hypothesis import given
from hypothesis import strategies as st

from ragkv import Prompt, encode, load_tokenizer
from ragkv.figures.highlight import highlight

TEXTS = ["Late the cook wrote VAR PIGA 414.", "Then the poet wrote VAR REDA PIGA."]


def plain_text(html):
    return unescape(re.sub("<[^>]+>", "", html))


def paragraphs(page):
    return re.findall(r"<p [^>]*>(.*?)</p>", page, re.S)


def marks(page):
    """The texts marked as recomputed and those marked as evidence, in the document itself."""
    return [
        [plain_text(text) for text in re.findall(rf"<{tag} [^>]*>(.*?)</{tag}>", "".join(paragraphs(page)), re.S)]
        for tag in ("mark", "u")
    ]


def test_the_highlighted_document_is_the_document():
    """Without its tags the HTML is the text, chunk by chunk; only recomputed tokens are marked."""
    tokenizer = load_tokenizer("tiny-llama")
    chunks = [encode(tokenizer, text) for text in TEXTS]
    prompt = Prompt([1], chunks, [5])
    start = prompt.document_span.start
    page = highlight(tokenizer, prompt, [start + 2, start + 3, len(prompt.ids) - 1], evidence=[3, len(chunks[0])])
    assert list(map(plain_text, paragraphs(page))) == [tokenizer.decode(chunk) for chunk in chunks]
    recomputed, evidence = marks(page)
    assert recomputed == tokenizer.decode(chunks[0][2:4]).split()
    assert evidence == [tokenizer.decode(chunks[0][3]), tokenizer.decode(chunks[1][0])]
    assert re.findall(r"chunk \d+: [^<]*", page) == [
        f"chunk 1: 2 of {len(chunks[0])} tokens recomputed, 1 of the 1 of evidence",
        f"chunk 2: 0 of {len(chunks[1])} tokens recomputed, 0 of the 1 of evidence",
    ]


@given(st.text(max_size=30), st.data())
def test_any_text_comes_out_as_it_is(text, data):
    """Also characters of several tokens, markup and white space."""
    tokenizer = byte_level_bpe()
    ids = encode(tokenizer, f"x{text}")
    chosen = data.draw(st.sets(st.integers(0, len(ids) - 1)))
    page = highlight(tokenizer, Prompt([], [ids], [1]), chosen)
    (paragraph,) = paragraphs(page)
    assert plain_text(paragraph) == tokenizer.decode(ids)
    assert set(re.findall(r"</?(\w+)", paragraph)) <= {"mark"}
    assert bool(marks(page)[0]) == bool(chosen)
    if len(chosen) == len(ids):
        assert marks(page)[0] == [tokenizer.decode(ids)]


def test_markup_in_a_document_is_shown_as_text():
    class Words:
        words = ("", "<script>alert(1)</script>", "&", "<b>", "</p>")

        def decode(self, ids):
            return "".join(self.words[i] for i in ids)

    page = highlight(Words(), Prompt([], [[1, 2, 3, 4]], [1]), [0, 3], evidence=[1])
    assert not re.search("<(script|b)>", page)
    (paragraph,) = paragraphs(page)
    assert plain_text(paragraph) == "<script>alert(1)</script>&<b></p>"


def test_strips_show_attention_chunk_by_chunk():
    """A strip is brighter where tokens get more attention, on a scale for the whole document."""
    tokenizer = load_tokenizer("tiny-llama")
    prompt = Prompt([1], [[10, 11, 12, 13], [14, 15]], [5])
    page = highlight(tokenizer, prompt, [], attention=torch.tensor([0.0, 0.0, 0.25, 0.0, 0.0, 1.0]))
    assert "linear-gradient" not in highlight(tokenizer, prompt, [])
    ramp, *strips = re.findall(r"width:([\d.]+)[^;]*;[^\"]*linear-gradient\(90deg,([^)]*)\)", page)
    levels = ramp[1].split(",")
    assert [float(width) for width, _ in strips] == [100, 50]
    first, second = ([stop.split() for stop in strip.split(",")] for _, strip in strips)
    assert first == [[levels[0], "0%", "50%"], [levels[8], "50%", "75%"], [levels[0], "75%", "100%"]]
    assert second == [[levels[0], "0%", "50%"], [levels[15], "50%", "100%"]]
    nothing = highlight(tokenizer, prompt, [], attention=[0.0] * 6, measure="<b>change")
    assert "&lt;b&gt;change, low" in nothing and "attention" not in nothing
    assert nothing.count(levels[15]) == 1  # in the legend only
    with pytest.raises(ValueError, match="attention to 5 tokens, and the document has 6"):
        highlight(tokenizer, prompt, [], attention=[0.0] * 5)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, two):
    """WCAG's contrast ratio."""
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def test_marks_are_readable_on_light_and_dark_pages():
    """7:1 for marked text on its background; 3:1 for the line under evidence, on that and on both pages."""
    page = highlight(load_tokenizer("tiny-llama"), Prompt([], [[10]], [5]), [0], evidence=[0])
    ground, text = re.search(r"background:(#\w{6});color:(#\w{6})", page).groups()
    (line,) = set(re.findall(r"solid (#\w{6})", page))
    assert contrast(text, ground) >= 7
    assert all(contrast(line, behind) >= 3 for behind in (ground, "#FFFFFF", "#111111"))
