"""What a model's part of a report writes beside the page, and where its numbers come from."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ragkv import figures
from ragkv.experiment.experiment import Experiment
from ragkv.report.tables import Table, write_table
from ragkv.results.files import read_json

Source = Mapping[str, object]  # where numbers come from: results file, provenance


@dataclass(frozen=True)
class Drawing:
    """A figure on the page: the names of its files, and the results file that it was drawn from."""

    png: str
    pdf: str
    results: str


class ModelFiles:
    """The files of one model of a profile: tables and figures to write, results to name."""

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.outputs = experiment.outputs
        self.name = self.outputs.folder.name
        self.by_hand = set_by_hand(experiment)

    def title(self, subject: str) -> str:
        """The title of a figure; it says which options were set by hand."""
        return subject + (f"\nset by hand for this model: {self.by_hand}" if self.by_hand else "")

    def drawing(self, kind: str, figure: Figure, source: Source) -> Drawing:
        """Write a figure as PNG and PDF."""
        path = figures.save(figure, self._file(f"{kind}.png"), source)
        return Drawing(path.name, path.with_suffix(".pdf").name, str(source["results"]))

    def table(self, kind: str, table: pd.DataFrame, source: Source, **options: Any) -> Table:
        """Write a table as CSV and LaTeX; options as in `write_table`."""
        return write_table(table, self._file(kind), source, **options)

    def relative(self, path: Path) -> str:
        """A path as links on the page have it."""
        return path.relative_to(self.outputs.profile_folder).as_posix()

    def source(self, results: Path, benchmark: str, task: str) -> dict[str, object]:
        """Where numbers come from: the results file, and the task's provenance."""
        summary = read_json(self.outputs.summary(benchmark, task), f"of the benchmark {benchmark}")
        origin = {"profile": self.experiment.name, "results": self.relative(results)}
        by_hand = {"set by hand": self.by_hand} if self.by_hand else {}
        return origin | by_hand | summary["provenance"]

    def command(self, results: Path) -> str:
        """A shell command that computes a results file again, and everything it needs that is missing."""
        name = self.experiment.name
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", name) or name.lower() in ("true", "false", "nan", "inf", "infinity"):
            name = f"!!str {json.dumps(name, ensure_ascii=False)} #"  # in YAML; Snakemake strips quotes at the end
        profile = shlex.quote(f"profile={name}")
        path = re.sub(r'([\\"$`])', r"\\\1", results.relative_to(self.experiment.root).as_posix())
        return f'snakemake -s workflow/Snakefile --cores 2 --config {profile} -f "$PWD/{path}"'

    def _file(self, kind: str) -> Path:
        return self.outputs.report_folder / f"{self.name}-{kind}"


def set_by_hand(experiment: Experiment) -> str:
    """The methods whose options were set by hand for this model alone, with these options; empty without any."""
    texts = []
    for method in experiment.profile.methods:
        options = method.options_by_model.get(experiment.model, {})
        if options:
            texts.append(f"{method.name} ({', '.join(f'{name} {value}' for name, value in options.items())})")
    return ", ".join(texts)
