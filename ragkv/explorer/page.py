"""The explorer's HTML: a table of answers and times, highlighted documents, and messages."""

from collections.abc import Mapping, Sequence
from html import escape

from ragkv.explorer.looks import STAGES, Look, Subject
from ragkv.figures.highlight import highlight

_COLOURS = dict(zip(STAGES, ("#009E73", "#56B4E9", "#E69F00", "#888888"), strict=True))  # Okabe and Ito, and grey
_CELL = "padding:.2em 1em .2em 0;text-align:left;vertical-align:top"
_NOTE = "margin:.4em 0;padding:.4em .8em;border-left:4px solid {colour}"


def answers(subject: Subject, looks: Mapping[str, Look]) -> str:
    """The question, and a table of each result's answer, score, recomputed tokens and time to first token by stage."""
    item = subject.item
    longest = max(look.ttft for look in looks.values())
    rows = [_row([escape(name), *_cells(subject, look, longest)]) for name, look in looks.items()]
    head = _row(["", "answer", "score", "vs. full prefill", "recomputed", "time to first token"], "th")
    expected = f" &nbsp; expected: <b>{escape(', '.join(item.answers))}</b>" if item.answers else ""
    question = f'<div style="white-space:pre-wrap">question: <b>{escape(item.question)}</b>{expected}</div>'
    stages = " &nbsp; ".join(f"{_block(_COLOURS[stage], '.8em')} {stage}" for stage in STAGES)
    return (
        f'<div style="line-height:1.5">{question}<table style="border-collapse:collapse;margin:.5em 0">{head}'
        f'{"".join(rows)}</table><div style="font-size:85%;opacity:.75">{stages} &nbsp; (one run each)</div></div>'
    )


def document(subject: Subject, look: Look, layer: int | None = None) -> str:
    """The document with its recomputed tokens, and the question's attention at one layer or, for None, over all."""
    attention = subject.attention.sum(0) if layer is None else subject.attention[layer]
    return highlight(subject.tokenizer, subject.prompt, look.selected, subject.item.evidence, attention)


def notes(subject: Subject) -> str:
    """A warning if the model does not know words of the prompt; otherwise empty."""
    if not subject.unknown:
        return ""
    return _note(
        f"{subject.unknown} of the prompt's {len(subject.prompt.ids)} tokens stand for words that this model does not "
        f"know: it sees {subject.tokenizer.unk_token} instead.",
        "#0072B2",
    )


def message(error: Exception, *, shown: bool) -> str:
    """An error message.

    Parameters
    ----------
    shown
        Whether previous results are still visible below the message.
    """
    explained = isinstance(error, ValueError | RuntimeError | OSError)  # these messages say what to do
    text = escape(str(error) if explained else f"{type(error).__name__}: {error}")
    stale = " The results below are from before this change." if shown else ""
    return _note(f"<b>This cannot be computed:</b> {text}.{stale}", "#D55E00")


def computing() -> str:
    """The message while results are being computed."""
    return _note("computing ...", "#888888")


def _cells(subject: Subject, look: Look, longest: float) -> list[str]:
    """The cells of a result's row after its name."""
    span = subject.prompt.document_span
    selected = look.selected
    recomputed = int(((selected >= span.start) & (selected < span.stop)).sum())
    score = f"{next(iter(look.scores.values())):.2f}" if look.scores else ""
    return [
        f'<b style="white-space:pre-wrap">{escape(look.text.strip())}</b>',
        score,
        "same" if look.text == subject.full.text else "different",
        f"{recomputed} of {len(span)} tokens",
        _bar(look, longest),
    ]


def _bar(look: Look, longest: float) -> str:
    """Seconds by stage as a stacked bar, scaled to the longest of all results, and as numbers in milliseconds."""
    parts = [_block(_COLOURS[stage], f"{12 * seconds / longest:.3g}em") for stage, seconds in look.seconds.items()]
    numbers = ", ".join(f"{stage} {1e3 * seconds:.1f}" for stage, seconds in look.seconds.items())
    return (
        f'<span style="white-space:nowrap">{"".join(parts)} {1e3 * look.ttft:.1f} ms</span>'
        f'<div style="font-size:85%;opacity:.75;white-space:nowrap">{numbers}</div>'
    )


def _block(colour: str, width: str) -> str:
    return f'<span style="display:inline-block;height:.8em;width:{width};background:{colour}"></span>'


def _row(cells: Sequence[str], tag: str = "td") -> str:
    opened = f'<{tag} style="{_CELL}">'
    return f"<tr>{''.join(f'{opened}{cell}</{tag}>' for cell in cells)}</tr>"


def _note(html: str, colour: str) -> str:
    return f'<div role="status" style="{_NOTE.format(colour=colour)}">{html}</div>'
