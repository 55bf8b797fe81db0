"""Where things lie under outputs/: the one place that knows."""

import re
from dataclasses import dataclass
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
        """What the profile and model are called among the store's manifests."""
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

    def partial(self, benchmark: str, task: str, parameters: str) -> Path:
        return self._task(benchmark, f"{task}.{parameters}.partial.jsonl")

    def _task(self, benchmark: str, file: str) -> Path:
        return self.folder / _plain(benchmark) / _plain(file)

    def partials(self, benchmark: str, task: str, parameters: str) -> list[Path]:
        """Those that are there, of the whole and of shards."""
        return sorted(self._task(benchmark, task).parent.glob(f"{task}.{parameters}.partial*.jsonl"))

    @property
    def report(self) -> Path:
        return self.profile_folder / "report.html"

    @property
    def report_folder(self) -> Path:
        return self.profile_folder / "report"


def _plain(name: str) -> str:
    """A name that stays in its folder.

    Raises
    ------
    ValueError
        It leads elsewhere.
    """
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise ValueError(f"{name!r} cannot name results: use a name without '/' and '\\', other than '.' and '..'")
    return name


def reports(outputs: Path) -> list[Path]:
    """The pages of all reports below outputs/: of runs made here, then of recorded ones."""
    return [page for depth in ("*", "reference/*") for page in sorted(outputs.glob(f"{depth}/report.html"))]


def summaries(profile_folder: Path) -> dict[Path, list[Path]]:
    """The files with the tasks' summaries in each model's folder of a profile."""
    models = [path.parent for path in sorted(profile_folder.glob("*/chunking.json"))]
    whole = {m: [p for p in sorted(m.glob("*/*.json")) if "." not in p.stem] for m in models}  # no parts, no prompts
    return {model: files for model, files in whole.items() if files}
