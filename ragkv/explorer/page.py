"""Looks as HTML: the answers and their times in a table, and a message where there is nothing to look at."""

from collections.abc import Mapping, Sequence
from html import escape

from ragkv.explorer.looks import STAGES, Look, Subject
from ragkv.figures.highlight import highlight

_COLOURS = dict(zip(STAGES, ("#009E73", "#56B4E9", "#E69F00", "#888888"), strict=True))  # Okabe and Ito's, and grey
_CELL = "padding:.2em 1em .2em 0;text-align:left;vertical-align:top"
_PERSON = "margin:.4em 0;padding:.4em .8em;border-left:4px solid {colour}"


def answers(subject: Subject, looks: Mapping[str, Look]) -> str:
    """The question, and each look's answer, score, recomputed tokens and time to the first token by stage."""
    item, longest = subject.item, max(look.ttft for look in looks.values())
    rows = [_row([escape(name), *_cells(subject, look, longest)]) for name, look in looks.items()]
    head = _row(["", "answer", "score", "as full prefill", "recomputed", "time to the first token"], "th")
    expected = f" &nbsp; expected: <b>{escape(', '.join(item.answers))}</b>" if item.answers else ""
    asked = f'<div style="white-space:pre-wrap">question: <b>{escape(item.question)}</b>{expected}</div>'
    stages = " &nbsp; ".join(f"{_block(_COLOURS[stage], '.8em')} {stage}" for stage in STAGES)
    return (
        f'<div style="line-height:1.5">{asked}<table style="border-collapse:collapse;margin:.5em 0">{head}'
        f'{"".join(rows)}</table><div style="font-size:85%;opacity:.75">{stages} &nbsp; (one run each)</div></div>'
    )


def document(subject: Subject, look: Look, layer: int | None = None) -> str:
    """The document with what was recomputed, and the question's attention at a layer; None is the sum over all."""
    attention = subject.attention.sum(0) if layer is None else subject.attention[layer]
    return highlight(subject.tokenizer, subject.prompt, look.selected, subject.item.evidence, attention)


def notes(subject: Subject) -> str:
    """What one should know about this prompt in this model; empty if there is nothing."""
    if not subject.unknown:
        return ""
    return _note(
        f"{subject.unknown} of the prompt's {len(subject.prompt.ids)} tokens stand for words that this model does not "
        f"have: it sees {subject.tokenizer.unk_token} there.",
        "#0072B2",
    )


def message(error: Exception, *, shown: bool) -> str:
    """An error where the person looks; `shown` says that below is still what was there before."""
    ours = isinstance(error, ValueError | RuntimeError | OSError)
    what = escape(str(error) if ours else f"{type(error).__name__}: {error}")
    stays = " What is shown below is from before." if shown else ""
    return _note(f"<b>This does not work yet:</b> {what}.{stays}", "#D55E00")


def computing() -> str:
    """For the time until there is something to look at."""
    return _note("computing ...", "#888888")


def _cells(subject: Subject, look: Look, longest: float) -> list[str]:
    span, selected = subject.prompt.document_span, look.selected
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
    parts = [_block(_COLOURS[stage], f"{12 * seconds / longest:.3g}em") for stage, seconds in look.seconds.items()]
    told = ", ".join(f"{stage} {1e3 * seconds:.1f}" for stage, seconds in look.seconds.items())
    return (
        f'<span style="white-space:nowrap">{"".join(parts)} {1e3 * look.ttft:.1f} ms</span>'
        f'<div style="font-size:85%;opacity:.75;white-space:nowrap">{told}</div>'
    )


def _block(colour: str, width: str) -> str:
    return f'<span style="display:inline-block;height:.8em;width:{width};background:{colour}"></span>'


def _row(cells: Sequence[str], tag: str = "td") -> str:
    opened = f'<{tag} style="{_CELL}">'
    return f"<tr>{''.join(f'{opened}{cell}</{tag}>' for cell in cells)}</tr>"


def _note(html: str, colour: str) -> str:
    return f'<div role="status" style="{_PERSON.format(colour=colour)}">{html}</div>'
