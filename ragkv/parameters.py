"""The notebooks' parameters: what a file in params/ may say, validated before anything runs."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ragkv.benchmarks import get_task
from ragkv.selectors import Selector, get_selector, selector_options


class Parameters(BaseModel):
    """Parameters that refuse names they do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MethodParameters(Parameters):
    """A selector and its options; those with a ratio run once per ratio of the task."""

    selector: str
    label: str | None = None
    options: dict[str, Any] = {}
    ratios: list[float] | None = None

    @property
    def name(self) -> str:
        return self.label or self.selector

    def selectors(self, ratios: list[float]) -> list[Selector]:
        """The selector at each ratio."""
        if "ratio" not in selector_options(self.selector):
            return [get_selector(self.selector, **self.options)]
        return [get_selector(self.selector, ratio=r, **self.options) for r in self.ratios or ratios]


class TaskParameters(Parameters):
    """How many prompts, how long a document in tokens, and the ratios to recompute."""

    prompts: int = Field(ge=1)
    length: int = Field(ge=8)
    ratios: list[float] = [0.15]
    seed: int = 0


class Profile(Parameters):
    """What one file in params/ says: which models, benchmark, tasks and methods, and how to run them."""

    models: list[str] = Field(min_length=1)
    benchmark: str
    tasks: dict[str, TaskParameters] = Field(min_length=1)
    methods: list[MethodParameters] = Field(min_length=1)
    chunk_tokens: int = Field(default=512, ge=1)
    context: Literal["bos", "prefix"] = "bos"
    max_new_tokens: int = Field(default=64, ge=1)
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    backend: str = "auto"

    @model_validator(mode="after")
    def _known_names(self) -> "Profile":
        """Every task and selector exists and takes its options; methods can be told apart."""
        for name, task in self.tasks.items():
            get_task(self.benchmark, name)
            for method in self.methods:
                method.selectors(task.ratios)
        names = [method.name for method in self.methods]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"methods named {', '.join(twice)} more than once: give each a label of its own")
        return self

    def task(self, name: str) -> TaskParameters:
        if name not in self.tasks:
            raise ValueError(f"the profile has no task {name!r}: choose one of {', '.join(self.tasks)}")
        return self.tasks[name]


def load_profile(name: str, folder: Path) -> Profile:
    """Read ``<folder>/<name>.yaml``.

    Raises
    ------
    ValueError
        No such file, or a parameter that is unknown or out of range; the message says which and what is allowed.
    """
    path = folder / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
        raise ValueError(f"no profile {name!r} in {folder.resolve()}: there are {known}")
    try:
        return Profile.model_validate(yaml.safe_load(path.read_text()))
    except (ValidationError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {_plain(error)}") from None


def _plain(error: Exception) -> str:
    """Pydantic's errors as one line: where, what."""
    if not isinstance(error, ValidationError):
        return str(error)
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(map(str, problem["loc"])) or "profile"
        what = (
            "there is no such parameter"
            if problem["type"] == "extra_forbidden"
            else problem["msg"].removeprefix("Value error, ")
        )
        lines.append(f"{where}: {what}")
    if any(problem["type"] == "extra_forbidden" for problem in error.errors()):
        lines.append(f"a profile's parameters are {', '.join(Profile.model_fields)}")
    return "; ".join(lines)
