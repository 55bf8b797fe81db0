"""The report of a profile: one page for all its models, with figures (PNG, PDF) and tables (CSV, LaTeX) as files."""

import shlex
from pathlib import Path

import pandas as pd

from ragkv.experiment.experiment import Experiment
from ragkv.experiment.finished import remove_partials, unfinished
from ragkv.figures.style import EVIDENCE
from ragkv.report.conclusion import Compared
from ragkv.report.interactive import script
from ragkv.report.overview import overviews
from ragkv.report.render import render
from ragkv.report.section import section
from ragkv.results.comparison import TIMES
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
        e.model: {b: {t: _rows(e, b, t) for t in s.tasks} for b, s in e.profile.benchmarks.items()} for e in experiments
    }
    _check_finished(experiments)
    compared = {model: {name: Compared.of(rows) for name, rows in results[model].items()} for model in results}
    sections = [section(e, results[e.model], compared[e.model]) for e in experiments]
    outputs = experiments[0].outputs
    shown = {e.outputs.folder.name: [f"{b}/{t}.json" for b, t in e.tasks] for e in experiments}
    write_json(outputs.report_results, shown)
    overview, fidelity = overviews(experiments, results, compared, outputs.report_folder)
    page = render(
        "report.html.jinja",
        outputs.report,
        profile=profile,
        note=experiments[0].profile.note,
        timed=experiments[0].profile.timed,
        assignment=shlex.quote(f"PROFILE={profile}".replace("$", "$$")),
        program=shlex.quote(f"from ragkv.report import write_report; write_report({profile!r}, '.')"),
        at=outputs.report_folder.name,
        overview=overview,
        fidelity=fidelity,
        methods={m.name: m.model_dump(exclude_defaults=True) for m in experiments[0].profile.methods},
        sections=sections,
        script=script(),
        evidence=EVIDENCE,
        shown_methods=range(max(len(example["answers"]) for example in _examples(sections))),
    )
    for experiment in experiments:
        remove_partials(experiment)
    return page


def _rows(experiment: Experiment, benchmark: str, task: str) -> pd.DataFrame:
    """A task's results, without times if the profile says that they mean nothing."""
    rows = experiment.rows(benchmark, task)
    return rows if experiment.profile.timed else rows.drop(columns=TIMES)


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


def _examples(sections: list[dict]) -> list[dict]:
    """The examples of all models, benchmarks and tasks."""
    return [
        example
        for section in sections
        for benchmark in section["benchmarks"]
        for examples in benchmark["examples"].values()
        for example in examples
    ]
