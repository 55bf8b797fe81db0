"""One model's part of a report, with its tables and figures written as files beside the page."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ragkv import figures
from ragkv.experiment.experiment import Experiment
from ragkv.report.tables import Table, as_html, fidelity_tables, intervals, times, with_recomputed, write_table
from ragkv.results.comparison import metrics, scores_by_task, summarise
from ragkv.results.fidelity import fidelity_by_method
from ragkv.results.files import read_json
from ragkv.results.frontier import areas, costs

Rows = dict[str, pd.DataFrame]  # a benchmark's results by task


@dataclass(frozen=True)
class Drawing:
    """A figure on the page: the names of its files, and the results file that it was drawn from."""

    png: str
    pdf: str
    results: str


class Section:
    """The part of the page about one model."""

    def __init__(self, experiment: Experiment, results: Mapping[str, Rows]):
        self.experiment = experiment
        self.results = results
        self.outputs = experiment.outputs
        self.name = self.outputs.folder.name
        self.by_hand = set_by_hand(experiment)

    def whole(self) -> dict:
        """All values that the template needs."""
        tokens = read_json(self.outputs.tokens, "06_selected_tokens.ipynb")
        source = self._source(self.outputs.tokens, tokens["benchmark"], tokens["task"])
        return {
            "model": self.experiment.model,
            "name": self.name,
            "by_hand": self.by_hand,
            "benchmarks": [self._benchmark(name, rows) for name, rows in self.results.items()],
            "chunking": as_html(pd.DataFrame(read_json(self.outputs.chunking, "01_chunking.ipynb"))),
            "precompute": read_json(self.outputs.precompute, "02_precompute.ipynb"),
            "tokens": tokens | {"command": self._command(self.outputs.tokens)} | self._tokens(tokens, source),
            "parameters": {"model": self.experiment.model}
            | self.experiment.profile.model_dump(exclude={"benchmarks", "methods", "models"}),
        }

    def _benchmark(self, name: str, rows: Rows) -> dict:
        """The scores of all tasks, and the task with the most rows in detail."""
        main = max(rows, key=lambda task: len(rows[task]))
        closely, source = rows[main], self._source(self.outputs.rows(name, main), name, main)
        all_tasks = source | {"results": self._relative(self.outputs.rows(name, main).parent)}
        several = has_ratios(closely)
        subject = f"{self.name}, {name}, {main}, {closely['prompt'].nunique()} prompts"
        by_hand = f"\nset by hand for this model: {self.by_hand}" if self.by_hand else ""
        title = subject + by_hand
        benchmark = self.experiment.profile.benchmark(name)
        scores = scores_by_task(rows, benchmark.label)
        ttft = figures.ttft_by_method(closely, f"{subject}, {source['device']}{by_hand}")
        found = {
            "name": name,
            "label": benchmark.label,
            "over_depth": has_depths(closely),
            "main": main,
            "prompts": closely["prompt"].nunique(),
            "scores": self._table(
                f"{name}-scores",
                with_recomputed(scores, *rows.values()),
                all_tasks,
                turned=scores.shape[1] > scores.shape[0],
            ),
            "intervals": self._table(f"{name}-{main}", with_recomputed(intervals(closely), closely), source),
            "metrics": self._table(f"{name}-metrics", with_recomputed(metrics(closely), closely), source),
            "times": self._table(f"{name}-times", with_recomputed(times(closely), closely), source),
            "figure": self._drawing(name, score_figure(closely, title), source),
            "ttft": self._drawing(f"{name}-ttft", ttft, source),
            "fidelity": None,
            "gap": False,
            "recovered": None,
            "areas": None,
            "frontier": None,
            "parameters": benchmark.model_dump(),
            "provenance": source,
            "summaries": {task: self._relative(self.outputs.summary(name, task)) for task in rows},
            "command": self._command(self.outputs.rows(name, main)),
        }
        fidelity = fidelity_by_method(closely)
        if "kl" in fidelity:
            found["gap"] = "recovered_kl" in fidelity
            table, shown = fidelity_tables(fidelity)
            found["fidelity"] = write_table(table, self._file(f"{name}-{main}-fidelity"), source, shown=shown)
            found["recovered"] = self._drawing(
                f"{name}-recovered", figures.recovered_over_share(fidelity, title), source
            )
        if several:
            if not (under := areas(closely).set_index("method")).empty:
                found["areas"] = self._table(f"{name}-{main}-areas", under, source)
            found["frontier"] = self._drawing(f"{name}-frontier", figures.frontier(costs(closely), title), source)
        return found

    def _tokens(self, view: dict, source: Mapping[str, object]) -> dict[str, Drawing]:
        """The figures of one prompt, token by token."""
        chunks, evidence = view["chunks"], view["evidence"]
        title = f"{self.name}, prompt {view['prompt']}"
        recomputed = figures.recomputed_tokens(
            view["selected"], view["document"], chunks, evidence, f"{title}, at a ratio of {view['ratio']:.0%}"
        )
        attention = figures.attention_map(
            np.array(view["attention"]), chunks, evidence, f"{title}, attention of the question"
        )
        drawn = {"recomputed": recomputed, "attention": attention}
        return {kind: self._drawing(kind, figure, source) for kind, figure in drawn.items()}

    def _drawing(self, kind: str, figure: Figure, source: Mapping[str, object]) -> Drawing:
        path = figures.save(figure, self._file(f"{kind}.png"), source)
        return Drawing(path.name, path.with_suffix(".pdf").name, str(source["results"]))

    def _table(self, kind: str, table: pd.DataFrame, source: Mapping[str, object], *, turned: bool = False) -> Table:
        return write_table(table, self._file(kind), source, turned=turned)

    def _file(self, kind: str) -> Path:
        return self.outputs.report_folder / f"{self.name}-{kind}"

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.outputs.profile_folder).as_posix()

    def _source(self, results: Path, benchmark: str, task: str) -> dict:
        """Where numbers come from: the results file, and the task's provenance."""
        summary = read_json(self.outputs.summary(benchmark, task), f"of the benchmark {benchmark}")
        where = {"profile": self.experiment.name, "results": self._relative(results)}
        by_hand = {"set by hand": self.by_hand} if self.by_hand else {}
        return where | by_hand | summary["provenance"]

    def _command(self, results: Path) -> str:
        """A shell command that computes a results file again, and everything it needs that is missing."""
        name = self.experiment.name
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", name) or name.lower() in ("true", "false", "nan", "inf", "infinity"):
            name = f"!!str {json.dumps(name, ensure_ascii=False)} #"  # in YAML; Snakemake strips quotes at the end
        profile = shlex.quote(f"profile={name}")
        path = re.sub(r'([\\"$`])', r"\\\1", results.relative_to(self.experiment.root).as_posix())
        return f'snakemake -s workflow/Snakefile --cores 2 --config {profile} -f "$PWD/{path}"'


def set_by_hand(experiment: Experiment) -> str:
    """The methods whose options were set by hand for this model alone, with these options; empty without any."""
    texts = []
    for method in experiment.profile.methods:
        options = method.options_by_model.get(experiment.model, {})
        if options:
            texts.append(f"{method.name} ({', '.join(f'{name} {value}' for name, value in options.items())})")
    return ", ".join(texts)


def score_figure(rows: pd.DataFrame, title: str) -> Figure:
    """The figure that suits a task: heat maps over depth and length, curves over ratios, or intervals by method."""
    if has_depths(rows):
        return figures.heat_map(rows, title)
    if has_ratios(rows):
        return figures.accuracy_over_share(rows, title)
    return figures.score_by_method(summarise(rows), title)


def has_depths(rows: pd.DataFrame) -> bool:
    """Whether results have a depth and a length each."""
    return {"depth", "length"} <= set(rows)


def has_ratios(rows: pd.DataFrame) -> bool:
    """Whether some method ran at several ratios."""
    return bool(rows.groupby("method")["ratio"].nunique().max() > 1)
