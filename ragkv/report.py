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


def accuracy_by_ratio(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by method, a column per ratio, in the order of the rows."""
    means = rows.groupby(["method", "ratio"], sort=False)["score"].mean().unstack()
    return means.reindex(rows["method"].unique())[sorted(means.columns)]


def accuracy_by_task(rows: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Accuracy by method and ratio, a column per task, for the ratios that every task has."""
    means = {task: table.groupby(["method", "ratio"], sort=False)["score"].mean() for task, table in rows.items()}
    order = [key for key in next(iter(means.values())).index if all(key in mean.index for mean in means.values())]
    return pd.DataFrame({task: mean.reindex(order) for task, mean in means.items()}).reindex(order)


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
    outputs, rows = experiment.outputs, {task: experiment.rows(task) for task in experiment.profile.tasks}
    folder, name = outputs.report_folder, Path(experiment.model).name
    main = max(rows, key=lambda task: len(rows[task]))  # the task with the full grid
    source = read_json(outputs.summary(main), _EVALUATION)["provenance"]
    tokens = read_json(outputs.tokens, _TOKENS)
    tables = {
        "accuracy": accuracy_by_ratio(rows[main]),
        "tasks": accuracy_by_task(rows),
        "times": times_table(rows[main]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for kind, table in tables.items():
        table.to_csv(folder / f"{name}-{kind}.csv", float_format="%.4f")
    place = {"document": tokens["document"], "chunks": tokens["chunks"], "evidence": tokens["evidence"]}
    prompts = rows[main]["prompt"].nunique()
    drawn = {
        "accuracy": figures.accuracy_over_ratio(rows[main], f"{name}, {main}, {prompts} prompts"),
        "recomputed": figures.recomputed_tokens(
            tokens["selected"], title=f"recomputed tokens at {tokens['ratio']:.0%}, {tokens['prompt']}", **place
        ),
        "attention": figures.attention_map(
            np.array(tokens["attention"]),
            place["chunks"],
            place["evidence"],
            f"attention of the question, {tokens['prompt']}",
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
        "tables": {kind: _html(table) for kind, table in tables.items()},
        "images": images,
        "csv": [f"report/{name}-{kind}.csv" for kind in tables],
        "tasks": {task: parameters.model_dump() for task, parameters in experiment.profile.tasks.items()},
        "parameters": experiment.profile.model_dump(exclude={"tasks", "methods", "models"}),
        "provenance": source,
    }


def _html(table: pd.DataFrame) -> str:
    shown = table.reset_index()
    if "ratio" in shown:
        shown["ratio"] = shown["ratio"].map("{:.0%}".format)
    shown.columns = [f"{column:.0%}" if isinstance(column, float) else column for column in shown.columns]
    return shown.to_html(index=False, na_rep="", float_format="%.2f", border=0)
