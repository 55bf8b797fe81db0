"""What the explorer shows, as HTML: a table of answers and times, highlighted documents, and messages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ragkv.explorer.looks import STAGES, Look, Subject
from ragkv.figures.highlight import highlight
from ragkv.figures.templates import templates

_COLOURS = dict(zip(STAGES, ("#009E73", "#56B4E9", "#E69F00", "#888888"), strict=True))  # Okabe and Ito, and grey
_WRONG, _TELLING, _QUIET = "#D55E00", "#0072B2", "#888888"
_LONGEST = 12  # em of the longest time
_PAGE: Any = templates("ragkv.explorer").get_template("page.html.jinja").module


@dataclass(frozen=True)
class _Row:
    """A row of the table of answers: `widths` are those of the time's stages, in em."""

    name: str
    text: str
    score: str
    same: bool
    recomputed: int
    document: int
    milliseconds: dict[str, float]
    widths: dict[str, float]


def answers(subject: Subject, looks: Mapping[str, Look]) -> str:
    """The question, and a table of each result's answer, score, recomputed tokens and time to first token by stage."""
    longest = max(look.ttft for look in looks.values())
    rows = [_row(subject, name, look, longest) for name, look in looks.items()]
    return _PAGE.answers(subject.item.question, subject.item.answers, rows, _COLOURS)


def _row(subject: Subject, name: str, look: Look, longest: float) -> _Row:
    span = subject.prompt.document_span
    return _Row(
        name=name,
        text=look.text.strip(),
        score=f"{next(iter(look.scores.values())):.2f}" if look.scores else "",
        same=look.text == subject.full.text,
        recomputed=int(((look.selected >= span.start) & (look.selected < span.stop)).sum()),
        document=len(span),
        milliseconds={stage: 1e3 * seconds for stage, seconds in look.seconds.items()},
        widths={stage: _LONGEST * seconds / longest for stage, seconds in look.seconds.items()},
    )


def document(subject: Subject, look: Look, layer: int | None = None) -> str:
    """The document with its recomputed tokens, and the question's attention at one layer or, for None, over all."""
    attention = subject.attention.sum(0) if layer is None else subject.attention[layer]
    return highlight(subject.tokenizer, subject.prompt, look.selected, subject.item.evidence, attention)


def notes(subject: Subject) -> str:
    """A warning if the model does not know words of the prompt; otherwise empty."""
    if not subject.unknown:
        return ""
    return _PAGE.note(
        f"{subject.unknown} of the prompt's {len(subject.prompt.ids)} tokens stand for words that this model does not "
        f"know: it sees {subject.tokenizer.unk_token} instead.",
        _TELLING,
    )


def message(error: Exception, *, shown: bool) -> str:
    """An error message.

    Parameters
    ----------
    shown
        Whether previous results are still visible below the message.
    """
    explained = isinstance(error, ValueError | RuntimeError | OSError)  # these messages say what to do
    text = str(error) if explained else f"{type(error).__name__}: {error}"
    return _PAGE.note(f"{text}.{_before(shown)}", _WRONG, title="This cannot be computed:")


def cancelled(*, shown: bool) -> str:
    """The message after the user stopped a computation."""
    return _PAGE.note(f"Cancelled.{_before(shown)}", _QUIET)


def _before(shown: bool) -> str:
    return " The results below are from before this change." if shown else ""
