"""The report of a profile: one HTML page with tables and figures, which also lie beside it as CSV and PNG."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment

from ragkv import figures
from ragkv.experiment import Experiment, summarise
from ragkv.results import read_json

_EVALUATION, _TOKENS = "03_evaluation.ipynb", "04_selected_tokens.ipynb"


def read_rows(experiment: Experiment) -> dict[str, pd.DataFrame]:
    """The results of every task of the experiment.

    Raises
    ------
    FileNotFoundError
        A task was not evaluated yet; the message names it.
    """
    rows = {}
    for task in experiment.profile.tasks:
        path = experiment.outputs.rows(task)
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there yet: run the notebook {_EVALUATION} for the task {task!r} first, or `make reproduce`")
        rows[task] = pd.read_parquet(path)
    return rows


def accuracy_table(rows: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Accuracy by method and ratio, a column per task."""
    columns = {task: table.groupby(["method", "ratio"], sort=False)["score"].mean() for task, table in rows.items()}
    return pd.DataFrame(columns)


def times_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Median TTFT, its ratio to full prefill's, and median TPOT, by method and ratio; milliseconds."""
    table = summarise(rows).set_index(["method", "ratio"])[["ttft", "tpot"]] * 1e3
    full = table["ttft"].get(("full_prefill", 1.0), np.nan)
    table.insert(1, "speed-up", full / table["ttft"])
    return table.rename(columns={"ttft": "TTFT (ms)", "tpot": "TPOT (ms)"})


def write_report(profile: str, root: str | Path) -> Path:
    """Draw and write the report of all models of a profile; returns the page's path."""
    models = Experiment.load(profile, root=root).profile.models
    sections = [_section(Experiment.load(profile, model=model, root=root)) for model in models]
    page = Environment(autoescape=True).from_string(files("ragkv").joinpath("report.html.jinja").read_text())
    path = Experiment.load(profile, root=root).outputs.report
    path.write_text(page.render(profile=profile, sections=sections))
    return path


def _section(experiment: Experiment) -> dict:
    """One model's tables and figures, written beside the page."""
    outputs, rows = experiment.outputs, read_rows(experiment)
    folder, name = outputs.report_folder, Path(experiment.model).name
    summaries = {task: read_json(outputs.summary(task), _EVALUATION) for task in rows}
    source = next(iter(summaries.values()))["provenance"]
    tokens = read_json(outputs.tokens, _TOKENS)
    main = max(rows, key=lambda task: len(rows[task]))  # the task with the full grid
    accuracy, times = accuracy_table(rows), times_table(rows[main])
    for table, kind in ((accuracy, "accuracy"), (times, "times")):
        folder.mkdir(parents=True, exist_ok=True)
        table.to_csv(folder / f"{name}-{kind}.csv", float_format="%.4f")
    place = {"document": tokens["document"], "chunks": tokens["chunks"], "evidence": tokens["evidence"]}
    prompts = rows[main]["prompt"].nunique()
    drawn = {
        "accuracy": figures.accuracy_over_ratio(rows[main], f"{name}, {main}, {prompts} prompts"),
        "recomputed": figures.recomputed_tokens(
            tokens["selected"], title=f"recomputed tokens at {tokens['ratio']:.0%}, {tokens['prompt']}", **place
        ),
        "attention": figures.attention_map(
            np.array(tokens["attention"]), place["chunks"], place["evidence"], f"attention of the question, {tokens['prompt']}"
        ),
        "ttft": figures.ttft_by_method(rows[main], f"{name}, {main}, {source['device']}"),
    }
    images = {
        kind: figures.save(figure, folder / f"{name}-{kind}.png", source).relative_to(outputs.profile_folder)
        for kind, figure in drawn.items()
    }
    return {
        "model": experiment.model,
        "benchmark": experiment.profile.benchmark,
        "main": main,
        "prompts": prompts,
        "tokens": tokens,
        "precompute": read_json(outputs.precompute, "02_precompute.ipynb"),
        "accuracy": _html(accuracy),
        "times": _html(times),
        "images": images,
        "csv": [f"report/{name}-{kind}.csv" for kind in ("accuracy", "times")],
        "tasks": {task: parameters.model_dump() for task, parameters in experiment.profile.tasks.items()},
        "parameters": experiment.profile.model_dump(exclude={"tasks", "methods", "models"}),
        "provenance": source,
    }


def _html(table: pd.DataFrame) -> str:
    shown = table.reset_index()
    shown["ratio"] = shown["ratio"].map("{:.0%}".format)
    return shown.to_html(index=False, na_rep="", float_format="%.2f", border=0)
