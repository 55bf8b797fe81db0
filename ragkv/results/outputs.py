"""The paths of everything under outputs/; no other module spells them out.

    outputs/index.html                              all reports
    outputs/reference/                              recorded reports and latencies, committed
    outputs/<profile>/report.html, report/          the report, its figures (PNG, PDF) and tables (CSV, LaTeX)
    outputs/<profile>/report/results.json           the results that the report was made from
    outputs/<profile>/store/                        K/V segments, shared by all benchmarks of the profile
    outputs/<profile>/<model>/
        chunking.json precompute.json               what chunking and precompute did
        tokens.json oracle.json                     one prompt token by token; choices compared with an oracle's
        notebooks/                                  the executed notebooks
    outputs/<profile>/<model>/<benchmark>/
        <task>.prompts.json                         the task's prompts, with what their evaluation needs
        <task>.parquet <task>.json                  a row per (prompt, method, ratio); summary with provenance
        <task>.<identity>.partial.<process>.jsonl   a process's rows so far, kept until the report is written

Every result has its checksum beside it, in a file that ends in ``.checksum``. A shard's files have its name before the
suffix: ``precompute.0-of-2.json``, and ``<task>.0-of-2.json`` when it is done.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from ragkv.results.files import read_json

LONGEST = 120  # bytes of a name; a file's name may have 255, and endings are added
NO_PROFILE = {"reference", "index.html"}  # other names in outputs/
NO_MODEL = {"store", "report", "report.html", "notebooks"}  # other names in a profile's folder
NO_TASK = re.compile(r"\.(prompts|\d+-of-\d+)$|\.partial\b")  # would be the name of a task's other files


@dataclass(frozen=True)
class Outputs:
    """Paths of one profile and model.

    Attributes
    ----------
    root
        The folder outputs/.
    profile
        The profile's name.
    model
        The name of the model's folder, see `model_folders`.
    """

    root: Path
    profile: str
    model: str

    @property
    def profile_folder(self) -> Path:
        return self.root / checked_name(self.profile, NO_PROFILE)

    @property
    def folder(self) -> Path:
        return self.profile_folder / checked_name(self.model, NO_MODEL)

    @property
    def store(self) -> str:
        return str(self.profile_folder / "store")

    @property
    def manifest(self) -> str:
        """The name of this profile and model among the store's manifests."""
        name = f"{self.profile}.{self.model}"
        plain = re.sub(r"[^\w.-]", "-", name)
        return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

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
        return self._task(benchmark, task, ".prompts.json")

    def rows(self, benchmark: str, task: str) -> Path:
        return self._task(benchmark, task, ".parquet")

    def summary(self, benchmark: str, task: str) -> Path:
        return self._task(benchmark, task, ".json")

    def partial(self, benchmark: str, task: str, identity: str, process: str) -> Path:
        """The rows so far that one process computed of an evaluation with this identity."""
        return self._task(benchmark, task, f".{identity}.partial.{process}.jsonl")

    def partials(self, benchmark: str, task: str, identity: str) -> list[Path]:
        """The existing files of this kind, of all processes."""
        folder = self.summary(benchmark, task).parent
        return sorted(folder.glob(f"{escape(task)}.{identity}.partial.*.jsonl"))

    def _task(self, benchmark: str, task: str, ending: str) -> Path:
        return self.folder / checked_name(benchmark, {"notebooks"}) / (checked_name(task, pattern=NO_TASK) + ending)

    @property
    def report(self) -> Path:
        return self.profile_folder / "report.html"

    @property
    def report_folder(self) -> Path:
        return self.profile_folder / "report"

    @property
    def report_results(self) -> Path:
        return self.report_folder / "results.json"


def checked_name(name: str, taken: AbstractSet[str] = frozenset(), pattern: re.Pattern | None = None) -> str:
    """The name, if it can name a file or folder among the results.

    Parameters
    ----------
    taken
        Names that other files have there.
    pattern
        What names of other files look like.

    Raises
    ------
    ValueError
        It would lead to another folder or file, cannot be shown, or is too long.
    """
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise ValueError(f"{name!r} cannot name results: use a name without '/' and '\\', other than '.' and '..'")
    if not name.isprintable():
        raise ValueError(f"{name!r} cannot name results: it has characters that cannot be shown, such as line breaks")
    if len(name.encode()) > LONGEST:
        raise ValueError(f"{name[:40]!r}... cannot name results: it is longer than {LONGEST} bytes")
    if name in taken or (pattern and pattern.search(name)):
        raise ValueError(f"{name!r} cannot name results: other files there have such names. Choose another")
    return name


def model_folders(models: Sequence[str]) -> dict[str, str]:
    """The name of each model's folder: the last part of its path or hub id.

    Where several models of a profile share it, also in capitals alone, it is their whole path or id, with its parts
    joined by ``--``.

    Raises
    ------
    ValueError
        A model is given twice, or two models cannot be told apart.
    """
    last = {model: Path(model).name.casefold() for model in models}
    shared = Counter(last.values()) + Counter(NO_MODEL)
    folders = {}
    for model in models:
        parts = [part for part in Path(model).parts if part != "/"]
        unique = shared[last[model]] == 1
        folders[model] = Path(model).name if unique else "--".join(parts)
    count = Counter(folders[model].casefold() for model in models)
    for name in folders.values():
        if count[name.casefold()] > 1:
            same = ", ".join(other for other in models if folders[other].casefold() == name.casefold())
            raise ValueError(f"the models {same} would share the results folder {name!r}: list each model once")
        checked_name(name, NO_MODEL)
    return folders


def reports(outputs: Path) -> list[Path]:
    """The pages of all reports in outputs/: first those of runs made here, then the recorded ones."""
    return [page for depth in ("*", "reference/*") for page in sorted(outputs.glob(f"{depth}/report.html"))]


def summaries(page: Path) -> dict[Path, list[Path]]:
    """The summaries of the tasks that a report shows, by the model's folder.

    A recorded report keeps its list of results beside it. Some recorded ones have none: all summaries are theirs.
    """
    folder = page.parent
    for listed in (folder / "report" / "results.json", folder / "results.json"):
        if listed.is_file():
            results = read_json(listed, "07_report.ipynb")
            return {folder / model: [folder / model / file for file in files] for model, files in results.items()}
    by_model = {}
    for model in sorted(path.parent for path in folder.glob("*/chunking.json")):
        files = [path for path in sorted(model.glob("*/*.json")) if "." not in path.stem]  # no shards, no prompts
        if files:
            by_model[model] = files
    return by_model
