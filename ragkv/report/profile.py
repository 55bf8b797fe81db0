"""The report of a profile: one page for all its models, with figures (PNG, PDF) and tables (CSV, LaTeX) as files."""

import shlex
from pathlib import Path

import pandas as pd

from ragkv.experiment.experiment import Experiment
from ragkv.experiment.finished import remove_partials, unfinished
from ragkv.report.render import render
from ragkv.report.section import Rows, Section
from ragkv.report.tables import with_recomputed, write_table
from ragkv.results.comparison import GROUP, scores_by_task
from ragkv.results.fidelity import fidelity_by_method, pooled
from ragkv.results.files import write_json


def write_report(profile: str, root: str | Path) -> Path:
    """Write the report of all models of a profile from their results on disk.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    FileNotFoundError
        Some results do not exist yet; the message says which notebook computes them.
    ValueError
        Some results are damaged, or were made with other parameters than the profile's present ones.
    """
    experiments = Experiment.load_all(profile, root=root)
    results = {
        e.model: {b: {t: e.rows(b, t) for t in s.tasks} for b, s in e.profile.benchmarks.items()} for e in experiments
    }
    _check_finished(experiments)
    sections = [Section(experiment, results[experiment.model]).whole() for experiment in experiments]
    outputs = experiments[0].outputs
    shown = {e.outputs.folder.name: [f"{b}/{t}.json" for b, t in e.tasks] for e in experiments}
    write_json(outputs.report_results, shown)
    source = {"profile": profile}
    overview = write_table(_overview(experiments, results), outputs.report_folder / "overview", source)
    fidelity = None
    if compared := _fidelity_overview(experiments, results):
        table, shown = compared
        fidelity = write_table(table, outputs.report_folder / "overview-fidelity", source, shown=shown)
    page = render(
        "report.html.jinja",
        outputs.report,
        profile=profile,
        assignment=shlex.quote(f"PROFILE={profile}".replace("$", "$$")),
        program=shlex.quote(f"from ragkv.report import write_report; write_report({profile!r}, '.')"),
        at=outputs.report_folder.name,
        overview=overview,
        fidelity=fidelity,
        methods={m.name: m.model_dump(exclude_defaults=True) for m in experiments[0].profile.methods},
        sections=sections,
    )
    for experiment in experiments:
        remove_partials(experiment)
    return page


def _check_finished(experiments: list[Experiment]) -> None:
    """Check that every result is of the profile's present parameters, so that no row is shown under a wrong name."""
    problems = [f"{path}: {why}" for experiment in experiments for path, why in unfinished(experiment).items()]
    if problems:
        name = shlex.quote(experiments[0].name)
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"the report is not written, because results are not finished: {'; '.join(problems[:3])}{more}. "
            f"Run `make reproduce PROFILE={name}` or `ragkv run {name}`"
        )


def _overview(experiments: list[Experiment], results: dict[str, dict[str, Rows]]) -> pd.DataFrame:
    """The average of each benchmark for each model, by method and the ratios that all of them were run with.

    The recomputed share is the average over all of them too.
    """
    columns = {
        f"{e.outputs.folder.name}, {name}": scores_by_task(rows, e.profile.benchmark(name).label)["average"]
        for e in experiments
        for name, rows in results[e.model].items()
    }
    order = next(iter(columns.values())).index
    return with_recomputed(pd.DataFrame(columns).reindex(order).dropna(), *_all_rows(results))


def _all_rows(results: dict[str, dict[str, Rows]]) -> list[pd.DataFrame]:
    """The rows of every task, benchmark and model."""
    return [rows for benchmarks in results.values() for tasks in benchmarks.values() for rows in tasks.values()]


def _fidelity_overview(
    experiments: list[Experiment], results: dict[str, dict[str, Rows]]
) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The divergence and the share of its gap that is recovered, over all prompts of a benchmark, for each model.

    The first table has columns for both and for the ends of their intervals; the second, for the page, has both in one
    cell. None without a full prefill.
    """
    numbers, cells = {}, {}
    for experiment in experiments:
        for benchmark, tasks in results[experiment.model].items():
            table = fidelity_by_method(pooled(tasks)).set_index(GROUP)
            name = f"{experiment.outputs.folder.name}, {benchmark}"
            if "kl" not in table:
                continue
            shown_as = {"kl": "KL", "recovered_kl": "recovered"}
            for column in ("kl", "recovered_kl"):
                for end in ("", "_low", "_high"):
                    if column + end in table:
                        numbers[f"{name}, {shown_as[column]}{end.replace('_', ' ')}"] = table[column + end]
            cells[name] = table["kl"].map("{:.3f}".format)
            if "recovered_kl" in table:
                cells[name] += table["recovered_kl"].map(" ({:.0%})".format, na_action="ignore").fillna("")
    if not cells:
        return None
    order = next(iter(cells.values())).index
    shown = pd.DataFrame(cells).reindex(order).dropna()  # what every benchmark was run with
    table = pd.DataFrame(numbers).reindex(shown.index)
    return with_recomputed(table, *_all_rows(results)), with_recomputed(shown, *_all_rows(results))
