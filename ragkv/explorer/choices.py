"""The explorer's controls: a model and a prompt, and a pane for each selector."""

import ipywidgets as widgets

from ragkv.experiment.profile import Profile
from ragkv.explorer.sources import FromBenchmark, OwnText, Source
from ragkv.models.load import embedded_models
from ragkv.selectors import SELECTORS, Selector, get_selector, selector_options

OWN = ("your own text",)
ALL = "all layers"
RATIOS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
CHUNKS = (16, 32, 64, 128, 256, 512, 1024)
NOTES = """Late the cook wrote VAR PIGA 414. Today the baker sold the old boat. Once the miner opened the red box.

Then the poet wrote VAR REDA PIGA. Soon the monk lost the red coat. Often the judge cleaned the tall tower."""
SIDE_BY_SIDE = {"flex_flow": "row wrap"}  # below each other, where the screen is narrow
_WIDE = {"width": "98%"}
_HALF = {"flex": "1 1 24em", "min_width": "0", "padding": "0 1em 0 0"}  # of the width, or all of a narrow screen
_WITHIN = {"max_width": "calc(100% - 4px)"}  # the pane and its margins


class Own(widgets.VBox):
    """Fields for your own document and question, typed or from a file."""

    def __init__(self) -> None:
        options = {"continuous_update": False, "layout": _WIDE}
        self.document = widgets.Textarea(NOTES, description="document", rows=6, **options)
        self.file = widgets.FileUpload(accept=".txt,.md", multiple=False, description="open a file")
        self.question = widgets.Text("Find VAR REDA?", description="question", **options)
        self.answer = widgets.Text(description="answer", placeholder="optional: gives a score", **options)
        super().__init__([self.document, self.file, self.question, self.answer])

    def source(self) -> OwnText:
        return OwnText(self.document.value, self.question.value, self.answer.value)


class Choice(widgets.VBox):
    """Controls for the model, the prompt and the chunk size.

    Parameters
    ----------
    prompt
        The first prompt to show: benchmark, task, and a number that counts from 1.

    Raises
    ------
    ValueError
        The profile has no such task.
    """

    def __init__(self, profile: Profile, prompt: tuple[str, str, int] | None = None):
        models = list(dict.fromkeys([*profile.models, *embedded_models()]))
        self.model = widgets.Combobox(value=models[0], options=models, description="model", continuous_update=False)
        tasks = [(name, task) for name, benchmark in profile.benchmarks.items() for task in benchmark.tasks]
        self._prompts = {}  # the number of prompts by task
        for name, task in tasks:
            self._prompts[name, task] = sum(count for count, _ in profile.benchmark(name).sizes(task))
        labelled = [(": ".join(key), key) for key in tasks]
        self.task = widgets.Dropdown(options=[*labelled, (*OWN, OWN)], description="prompt")
        self.number = widgets.BoundedIntText(1, min=1, max=1, description="number", layout={"width": "10em"})
        sizes = sorted({*CHUNKS, profile.chunk_tokens})
        self.chunk_tokens = widgets.Dropdown(options=sizes, value=profile.chunk_tokens, description="chunk size")
        self.layer = widgets.Dropdown(options=[ALL], description="attention")
        self.own = Own()
        rows = [self.model, self.task, self.number], [self.chunk_tokens, self.layer]
        super().__init__([*(widgets.HBox(row, layout=SIDE_BY_SIDE) for row in rows), self.own])
        self.task.observe(self._fit, "value")
        self._fit()
        if prompt is not None:
            benchmark, task, number = prompt
            if (benchmark, task) not in self._prompts:
                raise ValueError(
                    f"no task {benchmark}: {task} in this profile: choose one of {', '.join(map(': '.join, tasks))}"
                )
            self.task.value = (benchmark, task)
            self.number.value = number

    def source(self) -> Source:
        """The chosen prompt: one of a benchmark, or your own text."""
        if self.task.value == OWN:
            return self.own.source()
        benchmark, task = self.task.value
        return FromBenchmark(benchmark, task, self.number.value - 1)

    def offer_layers(self, count: int) -> None:
        """Let the user choose among the layers of this model."""
        options = [(ALL, ALL), *((f"layer {layer}", layer) for layer in range(count))]
        if len(self.layer.options) != len(options):
            self.layer.options = options

    def selected_layer(self) -> int | None:
        """The layer whose attention is shown; None for the sum over all layers."""
        return None if self.layer.value == ALL else self.layer.value

    def _fit(self, change: object = None) -> None:
        """Show only the controls that apply: a prompt's number, or the fields for your own text."""
        own = self.task.value == OWN
        self.own.layout.display = None if own else "none"
        self.number.layout.display = "none" if own else None
        self.number.max = 1 if own else self._prompts[self.task.value]


class Pane(widgets.VBox):
    """A selector and its ratio, and the document with the tokens that it recomputes.

    Raises
    ------
    ValueError
        There is no such selector.
    """

    def __init__(self, selector: str, ratio: float):
        names = [name for name in SELECTORS if name != "full_prefill"]
        if selector not in names:
            raise ValueError(f"no selector {selector!r} to look at: choose one of {', '.join(names)}")
        self.selector = widgets.Dropdown(options=names, value=selector, description="selector", layout=_WITHIN)
        ratios = [(f"{value:.0%}", value) for value in sorted({*RATIOS, ratio})]
        self.ratio = widgets.SelectionSlider(
            options=ratios, value=ratio, description="ratio", continuous_update=False, layout=_WITHIN
        )
        self.document = widgets.HTML()
        super().__init__([self.selector, self.ratio, self.document], layout=_HALF)
        self.selector.observe(self._fit, "value")
        self._fit()

    def chosen(self) -> tuple[str, Selector]:
        """The chosen selector, and its name for the table of answers."""
        name = self.selector.value
        if self.ratio.disabled:
            return name, get_selector(name)
        return f"{name} {self.ratio.value:.0%}", get_selector(name, ratio=self.ratio.value)

    def _fit(self, change: object = None) -> None:
        """Disable the slider for selectors without a ratio."""
        self.ratio.disabled = "ratio" not in selector_options(self.selector.value)
