"""The explorer app: `Looks` computes what the controls ask for, and `page` shows it."""

from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets

from ragkv.experiment.profile import load_profile
from ragkv.explorer import page
from ragkv.explorer.choices import Choice, Pane
from ragkv.explorer.looks import Look, Looks, Subject
from ragkv.prompt.formats import decode_text


class Explorer(widgets.VBox):
    """The app. Every change is computed at once; errors are shown in the app, and previous results stay visible.

    Parameters
    ----------
    profile
        The name of a file in params/. Its models and benchmarks can be chosen, besides the embedded models and your own
        text.
    root
        The folder that contains params/.
    prompt
        The first prompt to show: benchmark, task, and a number that counts from 1. None is the profile's first prompt.
    selectors
        The selectors that are first shown side by side.
    ratio
        Their ratio.

    Attributes
    ----------
    subject
        The prompt on display; None until one could be computed.
    looks
        The results on display by name: the full prefill's, and one per pane.

    Raises
    ------
    ValueError
        The profile, the prompt or a selector does not exist.
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
        self._computed = Looks(settings, root)
        self.subject: Subject | None = None
        self.looks: dict[str, Look] = {}
        self._sides: list[tuple[str, Look]] = []
        self.choice = Choice(settings, prompt)
        self.panes = [Pane(name, ratio) for name in selectors]
        self.message = widgets.HTML()
        self.answers = widgets.HTML()
        super().__init__([self.choice, self.message, self.answers, widgets.HBox(self.panes)])
        self._observe()
        self._compute()

    def _observe(self) -> None:
        """Compute or show again whenever a control changes."""
        choice, own = self.choice, self.choice.own
        computed = [choice.model, choice.task, choice.number, choice.chunk_tokens]
        computed += [own.document, own.question, own.answer]
        computed += [control for pane in self.panes for control in (pane.selector, pane.ratio)]
        for control in computed:
            control.observe(self._compute, "value")
        choice.layer.observe(self._show, "value")
        own.file.observe(self._open, "value")

    def _compute(self, change: object = None) -> None:
        choice = self.choice
        self.message.value = page.computing()
        try:
            subject = self._computed.subject(choice.model.value, choice.source(), choice.chunk_tokens.value)
            sides = []
            for pane in self.panes:
                name, selector = pane.chosen()
                sides.append((name, subject.look(selector)))
        except Exception as error:  # any error belongs where the user looks, not in a log
            self._show_error(error)
            return
        self.subject = subject
        self._sides = sides
        self.looks = {"full prefill": subject.full, **dict(sides)}
        choice.offer_layers(len(subject.attention))
        self.message.value = page.notes(subject)
        self._show()

    def _show(self, change: object = None) -> None:
        if self.subject is None:
            return
        self.answers.value = page.answers(self.subject, self.looks)
        for pane, (_, look) in zip(self.panes, self._sides, strict=True):
            pane.document.value = page.document(self.subject, look, self.choice.selected_layer())

    def _open(self, change: object) -> None:
        """Copy the text of an uploaded file into the document's text field."""
        for file in self.choice.own.file.value:
            try:
                self.choice.own.document.value = decode_text(bytes(file["content"]), file["name"])
            except ValueError as error:
                self._show_error(error)

    def _show_error(self, error: Exception) -> None:
        self.message.value = page.message(error, shown=self.subject is not None)
