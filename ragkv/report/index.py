"""The index over all profiles that have a report: made here, and recorded."""

from pathlib import Path

import pandas as pd

from ragkv.figures import label
from ragkv.report.render import render
from ragkv.report.tables import as_html
from ragkv.results.comparison import GROUP
from ragkv.results.files import read_json
from ragkv.results.outputs import reports, summaries


def write_index(root: str | Path) -> Path:
    """Write ``outputs/index.html``: every report below it, its models' scores, device and commit; returns the path."""
    outputs, entries = Path(root) / "outputs", []
    for page in reports(outputs):
        table = pd.DataFrame([_model(folder.name, files) for folder, files in summaries(page.parent).items()])
        where = page.relative_to(outputs)
        entries.append({"profile": where.parent.as_posix(), "page": where.as_posix(), "table": as_html(table)})
    return render("index.html.jinja", outputs / "index.html", entries=entries)


def _model(name: str, files: list[Path]) -> dict:
    """One model's line: mean scores over its tasks, and where they were measured."""
    tasks = [read_json(path, "of the benchmark") for path in files]
    scores = pd.DataFrame({i: pd.DataFrame(t["summary"]).set_index(GROUP)["score"] for i, t in enumerate(tasks)})
    means = scores.dropna().mean(axis=1)
    line: dict = {"model": name, "tasks": len(tasks), "prompts": sum(t["summary"][0]["prompts"] for t in tasks)}
    for method, ratio in (("full_prefill", 1.0), ("full_reuse", 0.0)):
        line[method] = means.get((method, ratio), float("nan"))
    partial = means[[0 < ratio < 1 for _, ratio in means.index]].sort_index(level="ratio", sort_remaining=False)
    if len(partial):  # of several that are best, the one that recomputes least
        line |= {"best": partial.max(), "by": label(*partial.idxmax())}
    return line | {key: tasks[0]["provenance"][key] for key in ("device", "dtype", "commit")}
