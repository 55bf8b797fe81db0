"""The index of all reports, those written here and recorded ones."""

from pathlib import Path
from typing import Any

import pandas as pd

from ragkv.figures import label
from ragkv.report.render import render
from ragkv.report.tables import BREAK, as_html
from ragkv.results.comparison import GROUP
from ragkv.results.files import read_json
from ragkv.results.outputs import reports, summaries
from ragkv.results.ranking import FEWEST

NO_BREAK = "\N{NO-BREAK SPACE}"


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
    means = _means([pd.DataFrame(task["summary"]).set_index(GROUP) for task in tasks])
    prompts = [task["summary"][0]["prompts"] for task in tasks]
    row: dict = {"model": name}
    partial = means[[0 < ratio < 1 for _, ratio in means.index]]
    if len(partial):
        row |= _best(partial) if min(prompts) >= FEWEST else {"best": "too few prompts", "by": ""}
    for method, ratio in (("full_prefill", 1.0), ("full_reuse", 0.0)):
        row[method] = _shown(means.loc[(method, ratio)]) if (method, ratio) in means.index else ""
    row |= {"prompts": sum(prompts), "tasks": len(tasks)}
    source = tasks[0]["provenance"]
    return row | {"measured on": f"{source['device']}, {source['dtype']}{BREAK}{source['commit']}"}


def _means(by_task: list[pd.DataFrame]) -> pd.DataFrame:
    """Mean scores over tasks, with the 95 % interval of the mean and the mean share, at what all tasks were run with.

    Prompts of different tasks are independent, so the squares of the distances to the ends of their intervals add up.
    """
    scores, lows, highs = (
        pd.DataFrame({number: table[column] for number, table in enumerate(by_task)}).dropna()
        for column in ("score", "low", "high")
    )
    means = scores.mean(axis=1).to_frame("score")
    means["low"] = means["score"] - _combined(scores - lows)
    means["high"] = means["score"] + _combined(highs - scores)
    recorded = [table["share"] for table in by_task if "share" in table]  # older summaries do not have it
    means["share"] = pd.concat(recorded).groupby(level=GROUP).mean() if recorded else float("nan")
    return means


def _combined(distances: pd.DataFrame) -> pd.Series:
    """The distance of an interval's end from the mean over tasks, from its distance in each task."""
    return (distances.clip(lower=0) ** 2).sum(axis=1) ** 0.5 / distances.shape[1]


def _best(partial: pd.DataFrame) -> dict[str, str]:
    """The highest score, and the method and ratio that it belongs to; of equal ones, the smallest ratio."""
    partial = partial.sort_index(level="ratio", sort_remaining=False)
    best: Any = partial["score"].idxmax()
    method, ratio = best
    share = partial["share"][best]
    name = label(method, ratio, None if pd.isna(share) else share)
    others = int((partial["high"] >= partial["low"][best]).sum()) - 1
    overlapping = f"{BREAK}and {others} overlapping" if others else ""
    return {"best": _shown(partial.loc[best]), "by": name + overlapping}


def _shown(line: pd.Series) -> str:
    ends = f"({line['low']:.2f} … {line['high']:.2f})"
    return f"{line['score']:.2f}{BREAK}{ends.replace(' ', NO_BREAK)}"
