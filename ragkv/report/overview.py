"""The tables that compare all models and benchmarks of a profile."""

from pathlib import Path

import pandas as pd

from ragkv.experiment.experiment import Experiment
from ragkv.report.benchmark import Rows
from ragkv.report.conclusion import Compared
from ragkv.report.tables import Table, best_values, with_recomputed, write_table
from ragkv.results.comparison import scores_by_task
from ragkv.results.ranking import FEWEST


def overviews(
    experiments: list[Experiment],
    results: dict[str, dict[str, Rows]],
    compared: dict[str, dict[str, Compared]],
    folder: Path,
) -> tuple[Table, Table | None]:
    """Write two tables of all models and benchmarks: scores, and the distance to full prefill (None without one)."""
    source = {"profile": experiments[0].name}
    rows = [part for benchmarks in results.values() for tasks in benchmarks.values() for part in tasks.values()]
    scores = _scores(experiments, results)
    best = _ranked(best_values(scores), experiments, compared)
    table = write_table(with_recomputed(scores, *rows), folder / "overview", source, best=best)
    return table, _fidelity(experiments, compared, rows, folder, source)


def _scores(experiments: list[Experiment], results: dict[str, dict[str, Rows]]) -> pd.DataFrame:
    """The average of each benchmark for each model, by method and the ratios that all of them were run with.

    The recomputed share is the average over all of them too.
    """
    columns = {
        f"{e.outputs.folder.name}, {name}": scores_by_task(rows, e.profile.benchmark(name).label)["average"]
        for e in experiments
        for name, rows in results[e.model].items()
    }
    order = next(iter(columns.values())).index
    return pd.DataFrame(columns).reindex(order).dropna()


def _fidelity(
    experiments: list[Experiment],
    compared: dict[str, dict[str, Compared]],
    rows: list[pd.DataFrame],
    folder: Path,
    source: dict,
) -> Table | None:
    """The divergence and the share of its gap that is recovered, over all prompts of a benchmark, for each model.

    The file has columns for both and for the ends of their intervals. The page has both in one cell, without the
    intervals. None without a full prefill.
    """
    shown_as = {"kl": "KL", "recovered_kl": "recovered"}
    numbers, cells, best = {}, {}, {}
    for experiment in experiments:
        for benchmark, one in compared[experiment.model].items():
            table = one.fidelity
            name = f"{experiment.outputs.folder.name}, {benchmark}"
            if "kl" not in table:
                continue
            for column in shown_as:
                for end in ("", "_low", "_high"):
                    if column + end in table:
                        numbers[f"{name}, {shown_as[column]}{end.replace('_', ' ')}"] = table[column + end]
            best[name] = best_values(table[["kl"]], 3, ["kl"])["kl"]
            cells[name] = table["kl"].map("{:.3f}".format)
            if "recovered_kl" in table:
                cells[name] += table["recovered_kl"].map(" ({:.0%})".format, na_action="ignore").fillna("")
    if not cells:
        return None
    order = next(iter(cells.values())).index
    shown = pd.DataFrame(cells).reindex(order).dropna()  # what every benchmark was run with
    return write_table(
        with_recomputed(pd.DataFrame(numbers).reindex(shown.index), *rows),
        folder / "overview-fidelity",
        source,
        shown=with_recomputed(shown, *rows),
        best=_ranked(pd.DataFrame(best).reindex(shown.index), experiments, compared),
    )


def _ranked(
    best: pd.DataFrame, experiments: list[Experiment], compared: dict[str, dict[str, Compared]]
) -> pd.DataFrame:
    """The marks of those columns whose benchmark has enough prompts."""
    prompts = {
        f"{experiment.outputs.folder.name}, {name}": one.prompts
        for experiment in experiments
        for name, one in compared[experiment.model].items()
    }
    return best[[name for name in best if prompts[name] >= FEWEST]]
