"""The report of a profile: one page for all its models, with figures (PNG, PDF) and tables (CSV, LaTeX) as files."""

from pathlib import Path

import pandas as pd

from ragkv.experiment.experiment import Experiment
from ragkv.experiment.profile import Profile
from ragkv.report.render import render
from ragkv.report.section import Rows, Section
from ragkv.report.tables import write_table
from ragkv.results.comparison import scores_by_task


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
    """
    experiments = Experiment.load_all(profile, root=root)
    results = {
        e.model: {b: {t: e.rows(b, t) for t in s.tasks} for b, s in e.profile.benchmarks.items()} for e in experiments
    }
    sections = [Section(experiment, results[experiment.model]).whole() for experiment in experiments]
    outputs = experiments[0].outputs
    overview = write_table(
        _overview(results, experiments[0].profile), outputs.report_folder / "overview", {"profile": profile}
    )
    return render(
        "report.html.jinja",
        outputs.report,
        profile=profile,
        at=outputs.report_folder.name,
        overview=overview,
        methods={m.name: m.model_dump(exclude_defaults=True) for m in experiments[0].profile.methods},
        sections=sections,
    )


def _overview(results: dict[str, dict[str, Rows]], profile: Profile) -> pd.DataFrame:
    """The average of each benchmark for each model, by method and the ratios that all of them were run with."""
    columns = {
        f"{Path(model).name}, {benchmark}": scores_by_task(rows, profile.benchmark(benchmark).label)["average"]
        for model, benchmarks in results.items()
        for benchmark, rows in benchmarks.items()
    }
    order = next(iter(columns.values())).index
    return pd.DataFrame(columns).reindex(order).dropna()
