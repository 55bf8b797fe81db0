"""The index of all reports, those written here and recorded ones."""

from pathlib import Path
from typing import Any

import pandas as pd

from ragkv.figures import label
from ragkv.report.render import render
from ragkv.report.tables import as_html
from ragkv.results.comparison import GROUP
from ragkv.results.files import read_json
from ragkv.results.outputs import reports, summaries


def write_index(root: str | Path) -> Path:
    """Write ``outputs/index.html``, which lists every report below it with its models' scores, device and commit.

    Returns
    -------
    Path
        The page.
    """
    outputs = Path(root) / "outputs"
    entries = []
    for page in reports(outputs):
        table = pd.DataFrame([_model(folder.name, files) for folder, files in summaries(page).items()])
        link = page.relative_to(outputs)
        entries.append({"profile": link.parent.as_posix(), "page": link.as_posix(), "table": as_html(table)})
    return render("index.html.jinja", outputs / "index.html", entries=entries)


def _model(name: str, files: list[Path]) -> dict:
    """One row of the table: a model's mean scores over its tasks, and where they were measured."""
    tasks = [read_json(path, "of the benchmark") for path in files]
    by_task = [pd.DataFrame(task["summary"]).set_index(GROUP) for task in tasks]
    means = pd.DataFrame({number: table["score"] for number, table in enumerate(by_task)}).dropna().mean(axis=1)
    recorded = [table["share"] for table in by_task if "share" in table]  # older summaries do not have it
    shares = pd.concat(recorded).groupby(level=GROUP).mean() if recorded else pd.Series()
    row: dict = {"model": name, "tasks": len(tasks)}
    row["prompts"] = sum(task["summary"][0]["prompts"] for task in tasks)
    for method, ratio in (("full_prefill", 1.0), ("full_reuse", 0.0)):
        row[method] = means.get((method, ratio), float("nan"))
    partial = means[[0 < ratio < 1 for _, ratio in means.index]]
    partial = partial.sort_index(level="ratio", sort_remaining=False)  # ties go to the smallest ratio
    if len(partial):
        best: Any = partial.idxmax()
        method, ratio = best
        row |= {"best": partial.max(), "by": label(method, ratio, shares.get(best))}
    return row | {key: tasks[0]["provenance"][key] for key in ("device", "dtype", "commit")}
