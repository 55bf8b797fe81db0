"""One benchmark's part of a model's section: one task in detail, the scores of all, and examples of each."""

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from ragkv import figures
from ragkv.report.examples import examples
from ragkv.report.interactive import charts
from ragkv.report.model_files import ModelFiles, Source
from ragkv.report.tables import Table, best_values, fidelity_tables, intervals, times, with_recomputed
from ragkv.results.comparison import GROUP, has_times, metrics, scores_by_task
from ragkv.results.fidelity import fidelity_by_method
from ragkv.results.frontier import areas, costs
from ragkv.results.ranking import FEWEST

Rows = dict[str, pd.DataFrame]  # a benchmark's results by task


def benchmark_section(files: ModelFiles, name: str, rows: Rows, tokenizer: PreTrainedTokenizerBase | None) -> dict:
    """All values that the template needs of a benchmark; its tables and figures are written.

    The task with the most rows is shown in detail.
    """
    main = max(rows, key=lambda task: len(rows[task]))
    closely = rows[main]
    results = files.outputs.rows(name, main)
    source = files.source(results, name, main)
    prompts = closely["prompt"].nunique()
    subject = f"{files.name}, {name}, {main}, {prompts} prompts"
    title = files.title(subject)
    benchmark = files.experiment.profile.benchmark(name)
    by_method = intervals(closely)
    best = _best(by_method[["score"]], prompts)
    return {
        "name": name,
        "label": benchmark.label,
        "over_depth": figures.has_depths(closely),
        "main": main,
        "prompts": prompts,
        "ranked": prompts >= FEWEST,
        "charts": charts(closely),
        "scores": _scores(files, name, rows, benchmark.label, source),
        "intervals": files.table(f"{name}-{main}", with_recomputed(by_method, closely), source, best=best),
        "metrics": _metrics(files, name, closely, source),
        "figure": files.drawing(name, figures.score_figure(closely, title), source),
        "examples": {task: examples(files.experiment, name, task, part, tokenizer) for task, part in rows.items()},
        "parameters": benchmark.model_dump(),
        "provenance": source,
        "summaries": {task: files.relative(files.outputs.summary(name, task)) for task in rows},
        "command": files.command(results),
        **_fidelity(files, name, main, closely, source, title),
        **_frontier(files, name, main, closely, source, title),
        **_times(files, name, closely, source, files.title(f"{subject}, {source['device']}")),
    }


def _scores(files: ModelFiles, name: str, rows: Rows, by: str | None, source: Source) -> Table | None:
    """The scores of all tasks; None for a single one, whose intervals are shown anyway."""
    scores = scores_by_task(rows, by)
    if scores.shape[1] == 2:  # a task and its average
        return None
    folder = files.outputs.rows(name, next(iter(rows))).parent
    return files.table(
        f"{name}-scores",
        with_recomputed(scores, *rows.values()),
        dict(source) | {"results": files.relative(folder)},
        best=_best(scores, min(part["prompt"].nunique() for part in rows.values())),
        turned=scores.shape[1] > scores.shape[0],
    )


def _metrics(files: ModelFiles, name: str, rows: pd.DataFrame, source: Source) -> Table | None:
    """The metrics of a task that are not its score; None without any."""
    table = metrics(rows)
    scores = rows.groupby(GROUP, sort=False)["score"].mean()
    others = table.loc[:, [column for column in table if not np.allclose(table[column], scores)]]
    return None if others.empty else files.table(f"{name}-metrics", with_recomputed(others, rows), source)


def _fidelity(files: ModelFiles, name: str, main: str, rows: pd.DataFrame, source: Source, title: str) -> dict:
    """How close methods stay to full prefill, and how much of the gap they recover."""
    fidelity = fidelity_by_method(rows)
    if "kl" not in fidelity:
        return {"fidelity": None, "gap": False, "score_gap": False, "recovered": None}
    table, shown, best = fidelity_tables(fidelity)
    marks = best if rows["prompt"].nunique() >= FEWEST else None
    figure = figures.recovered_over_share(fidelity, title)
    return {
        "gap": "recovered_kl" in fidelity,
        "score_gap": "recovered_score" in figures.gaps(fidelity),
        "fidelity": files.table(f"{name}-{main}-fidelity", table, source, shown=shown, best=marks),
        "recovered": files.drawing(f"{name}-recovered", figure, source),
    }


def _frontier(files: ModelFiles, name: str, main: str, rows: pd.DataFrame, source: Source, title: str) -> dict:
    """Accuracy over cost, where some method ran at several ratios."""
    if not figures.has_ratios(rows):
        return {"areas": None, "frontier": None}
    under = areas(rows).set_index("method")
    best = _best(under[["area"]], rows["prompt"].nunique())
    table = None if under.empty else files.table(f"{name}-{main}-areas", under, source, best=best)
    if not has_times(rows):
        return {"areas": table, "frontier": None}
    return {
        "areas": table,
        "frontier": files.drawing(f"{name}-frontier", figures.frontier(costs(rows), title), source),
    }


def _times(files: ModelFiles, name: str, rows: pd.DataFrame, source: Source, title: str) -> dict:
    """TTFT and TPOT, where they were measured."""
    if not has_times(rows):
        return {"times": None, "ttft": None}
    return {
        "times": files.table(f"{name}-times", with_recomputed(times(rows), rows), source),
        "ttft": files.drawing(f"{name}-ttft", figures.ttft_by_method(rows, title), source),
    }


def _best(table: pd.DataFrame, prompts: int) -> pd.DataFrame | None:
    """Where each column is best; None with too few prompts to say so."""
    return best_values(table) if prompts >= FEWEST else None
