"""The explorer app: `Looks` computes what the controls ask for, and `page` shows it."""

from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets

from ragkv.experiment.profile import load_profile
from ragkv.explorer import page
from ragkv.explorer.background import Cancelled, Job, Progress
from ragkv.explorer.choices import SIDE_BY_SIDE, Choice, Pane
from ragkv.explorer.looks import Look, Looks, Subject
from ragkv.explorer.sources import Source
from ragkv.prompt.formats import decode_text
from ragkv.selectors import Selector


class Running(widgets.HBox):
    """A progress bar and a button to cancel, visible only while something is computed."""

    def __init__(self) -> None:
        self.bar = widgets.FloatProgress(max=1.0, layout={"width": "16em", "min_width": "0"})
        self.what = widgets.Label(layout={"flex": "none"})
        self.cancel = widgets.Button(description="cancel", layout={"width": "auto", "flex": "none"})
        super().__init__([self.bar, self.what, self.cancel], layout=SIDE_BY_SIDE | {"display": "none"})

    def show(self, what: str, done: int, total: int) -> None:
        """Show how much is done."""
        self.layout.display = None
        self.bar.value = done / total
        self.what.value = f"{what}, {done + 1} of {total}" if total > 1 else what

    def hide(self) -> None:
        """Nothing is computed any more."""
        self.layout.display = "none"


class Explorer(widgets.VBox):
    """The app. Every change is computed at once, in the background; errors are shown in the app.

    While something is computed, the previous results stay visible, and a button cancels it. The first prompt is
    computed before the app appears.

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
        self._shown: tuple[Subject, list[tuple[str, Look]]] | None = None  # the prompt, and a result per pane
        self._job: Job | None = None
        self.choice = Choice(settings, prompt)
        self.panes = [Pane(name, ratio) for name in selectors]
        self.running = Running()
        self.message = widgets.HTML()
        self.answers = widgets.HTML()
        panes = widgets.HBox(self.panes, layout=SIDE_BY_SIDE)
        super().__init__([self.choice, self.running, self.message, self.answers, panes])
        self._observe()
        self._compute()
        self.wait()

    @property
    def subject(self) -> Subject | None:
        """The prompt on display; None until one could be computed."""
        return None if self._shown is None else self._shown[0]

    @property
    def looks(self) -> dict[str, Look]:
        """The results on display by name: the full prefill's, and one per pane."""
        if self._shown is None:
            return {}
        subject, sides = self._shown
        return {"full prefill": subject.full, **dict(sides)}

    def wait(self) -> None:
        """Wait until everything that was asked for is on display."""
        if self._job is not None:
            self._job.wait()

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
        self.running.cancel.on_click(self._cancel)

    def _compute(self, change: object = None) -> None:
        """Begin to compute what the controls ask for now, in place of what they asked for before."""
        choice = self.choice
        model, source, chunk_tokens = choice.model.value, choice.source(), choice.chunk_tokens.value
        selectors = [pane.chosen() for pane in self.panes]
        self._cancelled = False

        def work(progress: Progress) -> None:
            self._work(model, source, chunk_tokens, selectors, progress)

        self._job = Job(work, self.running.show, before=self._job)

    def _work(
        self, model: str, source: Source, chunk_tokens: int, selectors: list[tuple[str, Selector]], progress: Progress
    ) -> None:
        """Compute a prompt and a result per pane, and show them."""
        try:
            subject = self._computed.subject(model, source, chunk_tokens, progress)
            sides = []
            for number, (name, selector) in enumerate(selectors):
                progress(name, number, len(selectors))
                sides.append((name, subject.look(selector)))
            progress("full prefill", 0, 1)
            self._shown = subject, sides
            self.choice.offer_layers(len(subject.attention))
            self.message.value = page.notes(subject)
            self._show()
        except Cancelled:
            if not self._cancelled:  # a later change has begun already
                return
            self.message.value = page.cancelled(shown=self._shown is not None)
        except Exception as error:  # any error belongs where the user looks, not in a log
            self._show_error(error)
        self.running.hide()

    def _cancel(self, button: object) -> None:
        self._cancelled = True
        if self._job is not None:
            self._job.cancel()

    def _show(self, change: object = None) -> None:
        if self._shown is None:
            return
        subject, sides = self._shown
        self.answers.value = page.answers(subject, {"full prefill": subject.full, **dict(sides)})
        for pane, (_, look) in zip(self.panes, sides, strict=True):
            pane.document.value = page.document(subject, look, self.choice.selected_layer())

    def _open(self, change: object) -> None:
        """Copy the text of an uploaded file into the document's text field."""
        for file in self.choice.own.file.value:
            try:
                self.choice.own.document.value = decode_text(bytes(file["content"]), file["name"])
            except ValueError as error:
                self._show_error(error)

    def _show_error(self, error: Exception) -> None:
        self.message.value = page.message(error, shown=self._shown is not None)
