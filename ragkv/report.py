"""The report of a profile: one HTML page with tables and figures, which also lie beside it as CSV and PNG."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment
from matplotlib.figure import Figure

from ragkv import figures
from ragkv.comparison import grid, metrics, scores_by_task, summarise
from ragkv.experiment import Experiment
from ragkv.frontier import areas, costs
from ragkv.results import read_json

Rows = dict[str, pd.DataFrame]  # a benchmark's results by task
LABELS = {"longbench": None, "needle": "length", "ruler": "length"}  # what a task's results are told apart by


def times_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Median TTFT, its ratio to full prefill's, and median TPOT, by method and ratio; milliseconds."""
    table = summarise(rows).set_index(["method", "ratio"])[["ttft", "tpot"]] * 1e3
    full = table["ttft"].get(("full_prefill", 1.0), np.nan)
    table.insert(1, "speed-up", full / table["ttft"])
    return table.rename(columns={"ttft": "TTFT (ms)", "tpot": "TPOT (ms)"})


def write_report(profile: str, root: str | Path) -> Path:
    """Draw and write the report of all models of a profile; returns the page's path."""
    models = Experiment.load(profile, root=root).profile.models
    experiments = [Experiment.load(profile, model=model, root=root) for model in models]
    results = {
        e.model: {b: {t: e.rows(b, t) for t in s.tasks} for b, s in e.profile.benchmarks.items()} for e in experiments
    }
    sections = [_Section(experiment, results[experiment.model]).whole() for experiment in experiments]
    overview = _overview(results)
    overview.to_csv(experiments[0].outputs.report_folder / "overview.csv", float_format="%.4f")
    page = Environment(autoescape=True).from_string(files("ragkv").joinpath("report.html.jinja").read_text())
    path = experiments[0].outputs.report
    path.write_text(page.render(profile=profile, sections=sections, overview=_html(overview)))
    return path


def _overview(results: dict[str, dict[str, Rows]]) -> pd.DataFrame:
    """Each benchmark's average for each model, by method and the ratios that all were run with."""
    columns = {
        f"{Path(model).name}, {benchmark}": scores_by_task(rows, LABELS[benchmark])["average"]
        for model, benchmarks in results.items()
        for benchmark, rows in benchmarks.items()
    }
    order = next(iter(columns.values())).index
    return pd.DataFrame(columns).reindex(order).dropna()


class _Section:
    """One model's tables and figures, written beside the page."""

    def __init__(self, experiment: Experiment, results: dict[str, Rows]):
        self.experiment, self.results = experiment, results
        self.outputs, self.name = experiment.outputs, Path(experiment.model).name
        self.outputs.report_folder.mkdir(parents=True, exist_ok=True)
        self.csv: list[str] = []

    def whole(self) -> dict:
        tokens = read_json(self.outputs.tokens, "06_selected_tokens.ipynb")
        chunking = pd.DataFrame(read_json(self.outputs.chunking, "01_chunking.ipynb"))
        self.source = read_json(self.outputs.summary(tokens["benchmark"], tokens["task"]), "")["provenance"]
        return {
            "model": self.experiment.model,
            "benchmarks": [self._benchmark(name, rows) for name, rows in self.results.items()],
            "chunking": chunking.to_html(index=False, border=0),
            "precompute": read_json(self.outputs.precompute, "02_precompute.ipynb"),
            "tokens": tokens,
            "images": self._tokens(tokens),
            "csv": self.csv,
            "parameters": self.experiment.profile.model_dump(exclude={"benchmarks", "methods", "models"}),
            "provenance": self.source,
        }

    def _benchmark(self, name: str, rows: Rows) -> dict:
        """Scores of all tasks; the task with most rows closely."""
        main = max(rows, key=lambda task: len(rows[task]))
        several = [task for task, table in rows.items() if table.groupby("method")["ratio"].nunique().max() > 1]
        found = {
            "name": name,
            "main": main,
            "prompts": rows[main]["prompt"].nunique(),
            "several": main in several,
            "scores": self._table(f"{name}-scores", scores_by_task(rows, LABELS[name]), by_task=True),
            "intervals": self._table(f"{name}-{main}", _intervals(rows[main])),
            "metrics": self._table(f"{name}-metrics", metrics(rows[main])),
            "times": self._table(f"{name}-times", times_table(rows[main])),
            "parameters": self.experiment.profile.benchmark(name).model_dump(),
        }
        title = f"{self.name}, {name}, {main}"
        found["figure"] = self._image(name, self._figure(rows[main], main in several, title))
        found["ttft"] = self._image(
            f"{name}-ttft", figures.ttft_by_method(rows[main], f"{title}, {self.source['device']}")
        )
        if main in several:
            under = areas(rows[main]).set_index("method")
            found["areas"] = "" if under.empty else self._table(f"{name}-{main}-areas", under)
            shown = figures.frontier(costs(rows[main]), f"{title}, {rows[main]['prompt'].nunique()} prompts")
            found["frontier"] = self._image(f"{name}-frontier", shown)
        return found

    def _figure(self, rows: pd.DataFrame, several: bool, title: str) -> Figure:
        if "depth" in rows:
            return figures.heat_maps(grid(rows), title)
        if several:
            return figures.accuracy_over_ratio(rows, f"{title}, {rows['prompt'].nunique()} prompts")
        return figures.score_by_method(summarise(rows), f"{title}, {rows['prompt'].nunique()} prompts")

    def _tokens(self, tokens: dict) -> dict[str, Path]:
        place = {"document": tokens["document"], "chunks": tokens["chunks"], "evidence": tokens["evidence"]}
        recomputed = figures.recomputed_tokens(
            tokens["selected"], title=f"recomputed tokens at {tokens['ratio']:.0%}, {tokens['prompt']}", **place
        )
        attention = figures.attention_map(
            np.array(tokens["attention"]),
            tokens["chunks"],
            tokens["evidence"],
            f"attention of the question, {tokens['prompt']}",
        )
        return {"recomputed": self._image("recomputed", recomputed), "attention": self._image("attention", attention)}

    def _image(self, kind: str, figure: Figure) -> Path:
        path = figures.save(figure, self.outputs.report_folder / f"{self.name}-{kind}.png", self.source)
        return path.relative_to(self.outputs.profile_folder)

    def _table(self, kind: str, table: pd.DataFrame, *, by_task: bool = False) -> str:
        """The table as HTML, also written as CSV; `by_task` turns it so that many tasks fit on a page."""
        table.to_csv(self.outputs.report_folder / f"{self.name}-{kind}.csv", float_format="%.4f")
        self.csv.append(f"report/{self.name}-{kind}.csv")
        return _turned(table) if by_task else _html(table)


def _turned(table: pd.DataFrame) -> str:
    turned = table.T
    turned.columns = [figures.label(*key) for key in table.index]
    return turned.to_html(float_format="%.2f", border=0)


def _intervals(rows: pd.DataFrame) -> pd.DataFrame:
    """Score and difference to full prefill with their intervals, ready to print."""
    table = summarise(rows).set_index(["method", "ratio"])
    shown = {"score": table["score"], "95 %": _range(table, "low", "high")}
    if "difference" in table:
        shown["to full prefill"] = table["difference"]
        shown["95 % of it"] = _range(table, "difference_low", "difference_high")
    return pd.DataFrame(shown)


def _range(table: pd.DataFrame, low: str, high: str) -> pd.Series:
    return table[low].map("{:.2f}".format) + " … " + table[high].map("{:.2f}".format)


def _html(table: pd.DataFrame) -> str:
    shown = table.reset_index()
    if "ratio" in shown:
        shown["ratio"] = shown["ratio"].map("{:.0%}".format)
    return shown.to_html(index=False, na_rep="", float_format="%.2f", border=0)
