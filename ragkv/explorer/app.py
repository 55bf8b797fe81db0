"""The explorer: what is chosen in its controls is computed by `Looks` and shown as a page."""

from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets

from ragkv.experiment.profile import load_profile
from ragkv.explorer import page
from ragkv.explorer.choices import Choice, Pane
from ragkv.explorer.looks import Look, Looks, Subject
from ragkv.prompt.documents import decode_text


class Explorer(widgets.VBox):
    """The app. A change is computed at once; what cannot be is told in place, and what was shown before stays.

    Parameters
    ----------
    profile
        A file in params/, whose models and benchmarks can be chosen, beside the embedded models and one's own text.
    root
        The folder that holds params/.
    prompt
        The one to begin with: benchmark, task, and its number from 1 on; None is the profile's first.
    selectors
        Those that stand side by side at first.
    ratio
        Their ratio.

    Attributes
    ----------
    subject, looks
        What is shown: the prompt in its model, and by name the full prefill and the panes' looks; None and empty before
        anything could be computed.

    Raises
    ------
    ValueError
        No such profile, prompt or selector.
    """

    def __init__(
        self,
        profile: str,
        *,
        root: str | Path = ".",
        prompt: tuple[str, str, int] | None = None,
        selectors: Sequence[str] = ("a3", "cacheblend"),
        ratio: float = 0.15,
    ):
        settings = load_profile(profile, Path(root) / "params")
        self._made = Looks(settings, root)
        self.subject: Subject | None = None
        self.looks: dict[str, Look] = {}
        self._sides: list[tuple[str, Look]] = []
        self.choice, self.panes = Choice(settings, prompt), [Pane(name, ratio) for name in selectors]
        self.message, self.answers = widgets.HTML(), widgets.HTML()
        super().__init__([self.choice, self.message, self.answers, widgets.HBox(self.panes)])
        choice, own = self.choice, self.choice.own
        computed = [choice.model, choice.task, choice.number, choice.chunk_tokens]
        computed += [own.document, own.question, own.answer]
        computed += [control for pane in self.panes for control in (pane.selector, pane.ratio)]
        for control in computed:
            control.observe(self._compute, "value")
        choice.layer.observe(self._show, "value")
        own.file.observe(self._open, "value")
        self._compute()

    def _compute(self, change: object = None) -> None:
        self.message.value = page.computing()
        try:
            subject = self._made.subject(self.choice.model.value, self.choice.source(), self.choice.chunk_tokens.value)
            chosen = [pane.chosen() for pane in self.panes]
            sides = [(name, subject.look(selector)) for name, selector in chosen]
        except Exception as error:  # whatever it is, the person is to see it: here, not in a log
            self.message.value = page.message(error, shown=self.subject is not None)
            return
        self.subject, self._sides, self.looks = subject, sides, {"full prefill": subject.full, **dict(sides)}
        self.choice.layers(len(subject.attention))
        self.message.value = page.notes(subject)
        self._show()

    def _show(self, change: object = None) -> None:
        if self.subject is None:
            return
        self.answers.value = page.answers(self.subject, self.looks)
        for pane, (_, look) in zip(self.panes, self._sides, strict=True):
            pane.document.value = page.document(self.subject, look, self.choice.attended())

    def _open(self, change: object) -> None:
        """The text of a file that was given."""
        for file in self.choice.own.file.value:
            try:
                self.choice.own.document.value = decode_text(bytes(file["content"]), file["name"])
            except ValueError as error:
                self.message.value = page.message(error, shown=self.subject is not None)
