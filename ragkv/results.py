"""Results on disk: the one place that knows where things lie under outputs/, and how they are written and read.

::

    outputs/<profile>/report.html, report/          the report, its figures (PNG) and tables (CSV)
    outputs/<profile>/store/                        K/V segments, shared by all benchmarks of the profile
    outputs/<profile>/<model>/
        chunking.json precompute.json               what the chunking and precompute notebooks found
        tokens.json                                 selected tokens and attention in one prompt
        notebooks/                                  the executed notebooks
    outputs/<profile>/<model>/<benchmark>/
        <task>.prompts.json                         the task's prompts, with what their evaluation needs
        <task>.parquet <task>.json                  a row per (prompt, method, ratio); summary with provenance
        <task>.<parameters>.partial.jsonl           rows so far, while an evaluation runs or after it was interrupted

A shard's files have its name before the ending: ``precompute.0-of-2.json``, ``<task>.0-of-2.json`` when it is done.
"""

import errno
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import transformers
from transformers import PreTrainedModel

import ragkv
from ragkv.models import fingerprint


@dataclass(frozen=True)
class Outputs:
    """Paths of one profile and model."""

    root: Path
    profile: str
    model: str

    @property
    def profile_folder(self) -> Path:
        return self.root / self.profile

    @property
    def folder(self) -> Path:
        return self.profile_folder / Path(self.model).name

    @property
    def store(self) -> str:
        return str(self.profile_folder / "store")

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
        return self.folder / benchmark / f"{task}.prompts.json"

    def rows(self, benchmark: str, task: str) -> Path:
        return self.folder / benchmark / f"{task}.parquet"

    def summary(self, benchmark: str, task: str) -> Path:
        return self.folder / benchmark / f"{task}.json"

    def partial(self, benchmark: str, task: str, parameters: str) -> Path:
        return self.folder / benchmark / f"{task}.{parameters}.partial.jsonl"

    def partials(self, benchmark: str, task: str, parameters: str) -> list[Path]:
        """Those that are there, of the whole and of shards."""
        return sorted((self.folder / benchmark).glob(f"{task}.{parameters}.partial*.jsonl"))

    @property
    def report(self) -> Path:
        return self.profile_folder / "report.html"

    @property
    def report_folder(self) -> Path:
        return self.profile_folder / "report"


def write_json(path: Path, value: object, indent: int | None = 1) -> None:
    """Write `value`; the file appears whole or not at all."""
    _replace(path, lambda partial: partial.write_text(json.dumps(value, indent=indent) + "\n"))


def write_rows(path: Path, rows: pd.DataFrame) -> None:
    """Write a results table as parquet; the file appears whole or not at all."""
    _replace(path, lambda partial: rows.to_parquet(partial, index=False))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(path.name + ".partial")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        os.replace(partial, path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise OSError(
            f"cannot write {path}: {reason}. What was computed before is kept: make room or choose a root that can be "
            "written to, and run the same again"
        ) from error


def read_json(path: Path, made_by: str) -> dict:
    """Read what the notebook `made_by` wrote.

    Raises
    ------
    FileNotFoundError
        With the name of the notebook that makes the file.
    """
    return json.loads(_there(path, made_by).read_text())


def read_rows(path: Path, made_by: str) -> pd.DataFrame:
    """Read a results table; errors as in `read_json`."""
    return pd.read_parquet(_there(path, made_by))


def _there(path: Path, made_by: str) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there yet: run the notebook {made_by} first, or `make reproduce`")
    return path


def read_partial(path: Path) -> list[dict]:
    """The rows of an interrupted evaluation; a line that was cut off is dropped from its file, and computed again."""
    if not path.exists():
        return []
    rows = rows_so_far(path)
    if len(rows) < len(path.read_text().splitlines()) or not path.read_bytes().endswith(b"\n"):
        _replace(path, lambda partial: partial.write_text("".join(json.dumps(row) + "\n" for row in rows)))
    return rows


def rows_so_far(path: Path) -> list[dict]:
    """The whole lines of a file that another process may be writing; the file is left as it is."""
    rows = []
    for line in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def append_rows(path: Path, rows: Iterable[dict]) -> None:
    """Add rows to the file of an evaluation in progress, in one write."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))


def provenance(model: PreTrainedModel) -> dict[str, str | int | bool]:
    """What a result depends on: versions, device, the model's fingerprint and the commit."""
    device = next(model.parameters()).device
    return {
        "ragkv": ragkv.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "model": fingerprint(model),
    }


def commit() -> str:
    """The git commit of the code, marked when files differ from it.

    Where the code is not in a checkout of its own commit, as in a container, the environment variable ``RAGKV_COMMIT``
    says it; without either it is ``"unknown"``.
    """
    if given := os.environ.get("RAGKV_COMMIT"):
        return given
    folder = Path(__file__).parent

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("-modified" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
