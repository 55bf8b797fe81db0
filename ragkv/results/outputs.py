"""The paths of everything under outputs/; no other module spells them out.

    outputs/index.html                              all reports
    outputs/reference/                              recorded reports and latencies, committed
    outputs/<profile>/report.html, report/          the report, its figures (PNG, PDF) and tables (CSV, LaTeX)
    outputs/<profile>/store/                        K/V segments, shared by all benchmarks of the profile
    outputs/<profile>/<model>/
        chunking.json precompute.json               what chunking and precompute did
        tokens.json oracle.json                     one prompt token by token; choices compared with an oracle's
        notebooks/                                  the executed notebooks
    outputs/<profile>/<model>/<benchmark>/
        <task>.prompts.json                         the task's prompts, with what their evaluation needs
        <task>.parquet <task>.json                  a row per (prompt, method, ratio); summary with provenance
        <task>.<identity>.partial.jsonl             rows so far, of an evaluation that runs or was interrupted

A shard's files have its name before the suffix: ``precompute.0-of-2.json``, ``<task>.0-of-2.json`` when it is done.
"""

import re
from dataclasses import dataclass
from glob import escape
from pathlib import Path


@dataclass(frozen=True)
class Outputs:
    """Paths of one profile and model."""

    root: Path
    profile: str
    model: str

    @property
    def profile_folder(self) -> Path:
        return self.root / _plain(self.profile)

    @property
    def folder(self) -> Path:
        return self.profile_folder / _plain(Path(self.model).name)

    @property
    def store(self) -> str:
        return str(self.profile_folder / "store")

    @property
    def manifest(self) -> str:
        """The name of this profile and model among the store's manifests."""
        return re.sub(r"[^\w.-]", "-", f"{self.profile}.{Path(self.model).name}")

    @property
    def chunking(self) -> Path:
        return self.folder / "chunking.json"

    @property
    def precompute(self) -> Path:
        return self.folder / "precompute.json"

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens.json"

    @property
    def oracle(self) -> Path:
        return self.folder / "oracle.json"

    def prompts(self, benchmark: str, task: str) -> Path:
        return self._task(benchmark, f"{task}.prompts.json")

    def rows(self, benchmark: str, task: str) -> Path:
        return self._task(benchmark, f"{task}.parquet")

    def summary(self, benchmark: str, task: str) -> Path:
        return self._task(benchmark, f"{task}.json")

    def partial(self, benchmark: str, task: str, identity: str) -> Path:
        """The rows so far of an evaluation with this identity."""
        return self._task(benchmark, f"{task}.{identity}.partial.jsonl")

    def partials(self, benchmark: str, task: str, identity: str) -> list[Path]:
        """The existing files of this kind: that of the whole, and those of shards."""
        return sorted(self._task(benchmark, task).parent.glob(f"{escape(task)}.{identity}.partial*.jsonl"))

    def _task(self, benchmark: str, file: str) -> Path:
        return self.folder / _plain(benchmark) / _plain(file)

    @property
    def report(self) -> Path:
        return self.profile_folder / "report.html"

    @property
    def report_folder(self) -> Path:
        return self.profile_folder / "report"


def _plain(name: str) -> str:
    """The name, if it can name a file or folder.

    Raises
    ------
    ValueError
        It would lead to another folder.
    """
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise ValueError(f"{name!r} cannot name results: use a name without '/' and '\\', other than '.' and '..'")
    return name


def reports(outputs: Path) -> list[Path]:
    """The pages of all reports in outputs/: first those of runs made here, then the recorded ones."""
    return [page for depth in ("*", "reference/*") for page in sorted(outputs.glob(f"{depth}/report.html"))]


def summaries(profile_folder: Path) -> dict[Path, list[Path]]:
    """The summaries of all tasks, by the model's folder in a profile's folder."""
    found = {}
    for folder in sorted(path.parent for path in profile_folder.glob("*/chunking.json")):
        files = [path for path in sorted(folder.glob("*/*.json")) if "." not in path.stem]  # no shards, no prompts
        if files:
            found[folder] = files
    return found
