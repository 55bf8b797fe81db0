"""A prompt's document as HTML, the recomputed tokens highlighted in place."""

from collections.abc import Collection
from html import escape

from transformers import PreTrainedTokenizerBase

from ragkv.prompt import Prompt

_RECOMPUTED, _EVIDENCE = "background:#F5C77E", "border-bottom:2px solid #0072B2"


def highlight(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, selected: Collection[int], evidence: Collection[int] = ()
) -> str:
    """HTML that shows the document: recomputed tokens on a ground of their own, evidence underlined, chunks apart.

    Parameters
    ----------
    selected
        Positions within the prompt that were recomputed (`Prefill.selected`).
    evidence
        Indices within the document of the tokens that the answer follows from.
    """
    chosen, proof, start = set(map(int, selected)), set(map(int, evidence)), prompt.document_span.start
    chunks = []
    for span in prompt.chunk_spans:
        words = []
        for position in span:
            styles = [_RECOMPUTED] * (position in chosen) + [_EVIDENCE] * (position - start in proof)
            text = escape(_text(tokenizer, prompt.ids, position, span.start))
            words.append(f'<span style="{";".join(styles)}">{text}</span>' if styles else text)
        chunks.append(f'<p style="margin:0 0 .5em;white-space:pre-wrap">{"".join(words)}</p>')
    return f'<div style="font-family:monospace;font-size:90%;line-height:1.5">{"".join(chunks)}</div>'


def _text(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...], position: int, start: int) -> str:
    """What a token adds to the text of the one before it: so spaces between words come out."""
    before = ids[max(start, position - 1) : position]
    return tokenizer.decode([*before, ids[position]])[len(tokenizer.decode(list(before))) :]
