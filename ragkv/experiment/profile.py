"""What a file in params/ may say: models, benchmarks and methods, validated before anything runs."""

from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from ragkv.benchmarks import BENCHMARKS, Benchmark
from ragkv.eviction import EVICTIONS, Eviction, get_eviction
from ragkv.experiment.offline import Offline
from ragkv.options import choose
from ragkv.parameters import Parameters
from ragkv.prompt.chunking import By
from ragkv.selectors import Selector, get_selector, selector_options

Kind = TypeVar("Kind", bound=Parameters)


class MethodParameters(Parameters):
    """A selector and its options; those with a ratio run once per ratio of the task.

    Attributes
    ----------
    options_by_model
        Options of single models, over `options`.
    offline
        ``{context: similar, format: fp8}``: how its chunks were computed and stored, see `ragkv.experiment.offline`.
    eviction
        ``{name: snapkv, capacity_ratio: 0.25}``: what leaves the cache after the prefill, see `ragkv.eviction`.
    calibrated
        Also take the options of the model's own file in params/calibration, see `ragkv.calibrate`.
    """

    selector: str
    label: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    options_by_model: dict[str, dict[str, Any]] = Field(default_factory=dict)
    calibrated: bool = False
    ratios: list[float] | None = None
    offline: Offline = Offline()
    eviction: dict[str, Any] | None = None

    @field_validator("eviction")
    @classmethod
    def _fits(cls, given: dict[str, Any] | None) -> dict[str, Any] | None:
        if given is not None:
            _eviction(given)
        return given

    @property
    def name(self) -> str:
        return self.label or self.selector

    def selectors(self, ratios: list[float], model: str, found: dict[str, Any] | None = None) -> list[Selector]:
        """The selector at each ratio, with its options for this model; `found` are those of its calibration."""
        options = (found or {}) | self.options | self.options_by_model.get(model, {})
        if "ratio" not in selector_options(self.selector):
            return [get_selector(self.selector, **options)]
        return [get_selector(self.selector, ratio=r, **options) for r in self.ratios or ratios]

    def evicts(self) -> Eviction | None:
        """What leaves the cache after the prefill, if anything."""
        return None if self.eviction is None else _eviction(self.eviction)


def _eviction(given: dict[str, Any]) -> Eviction:
    if "name" not in given:
        raise ValueError(f"an eviction needs a name: one of {', '.join(EVICTIONS)}")
    return get_eviction(**given)


class StoreParameters(Parameters):
    """Where a profile's segments are stored.

    Attributes
    ----------
    url
        A folder, relative to the root, or any fsspec URL (``s3://bucket/kv``); None is the profile's own folder below
        outputs/.
    cache, cache_gigabytes
        A local folder in front of a remote store, and the most that it takes.
    """

    url: str | None = None
    cache: str | None = None
    cache_gigabytes: float = Field(default=20.0, ge=0)


class Profile(Parameters):
    """What one file in params/ says.

    Attributes
    ----------
    models
        Embedded ones by name, local folders, or hub ids.
    benchmarks
        Each with its tasks, see `ragkv.benchmarks`.
    methods
        The selectors to compare.
    chunk_tokens, chunk_by
        How documents are cut, see `ragkv.prompt.chunking`.
    store
        Where segments are stored, by default below outputs/.
    device, dtype, backend
        Where and how models run.
    """

    models: list[str] = Field(min_length=1)
    benchmarks: dict[str, SerializeAsAny[Benchmark]] = Field(min_length=1)
    methods: list[MethodParameters] = Field(min_length=1)
    chunk_tokens: int = Field(default=512, ge=1)
    chunk_by: By = "tokens"
    store: StoreParameters = StoreParameters()
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    backend: str = "auto"

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        """Each benchmark's parameters are its own."""
        if not isinstance(given, dict):
            return given
        return {name: _validated(choose("benchmark", name, BENCHMARKS), name, some) for name, some in given.items()}

    @model_validator(mode="after")
    def _methods_fit(self) -> "Profile":
        """Every method takes its options and ratios; methods can be told apart."""
        for method in self.methods:
            if others := set(method.options_by_model) - set(self.models):
                raise ValueError(f"{method.name} has options for {', '.join(sorted(others))}: not in models")
            for benchmark in self.benchmarks.values():
                for task in benchmark.tasks.values():
                    for model in self.models:
                        method.selectors(task.ratios, model)
        names = [method.name for method in self.methods]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"methods named {', '.join(twice)} more than once: give each a label of its own")
        return self

    @property
    def offline(self) -> list[Offline]:
        """Every way in which chunks are computed and stored for some method; the plain one is always there."""
        return list(dict.fromkeys([Offline(), *(method.offline for method in self.methods)]))

    def benchmark(self, name: str) -> Benchmark:
        return choose("benchmark of this profile", name, self.benchmarks)


def load_profile(name: str, folder: Path) -> Profile:
    """Read ``<folder>/<name>.yaml``; where it says ``extends: <other>``, it changes parameters of that file.

    Raises
    ------
    ValueError
        No such file, or a parameter that is unknown or out of range; the message says which and what is allowed.
    """
    return _validated(Profile, str(folder / f"{name}.yaml"), _read(name, folder, []))


def _read(name: str, folder: Path, extended_by: list[str]) -> dict:
    """A file's parameters, over those of the file that it extends."""
    path = folder / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
        raise ValueError(f"no profile {name!r} in {folder.resolve()}: there are {known}")
    if name in extended_by:
        raise ValueError(f"{path}: profiles extend each other in a circle, {' -> '.join([*extended_by, name])}")
    try:
        given = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(given, dict):
        raise ValueError(f"{path}: it must hold parameters by name, such as `models: [tiny-llama]`")
    other = given.pop("extends", None)
    return given if other is None else _read(other, folder, [*extended_by, name]) | given


def _validated(kind: type[Kind], where: str, given: Any) -> Kind:
    """Pydantic's errors as one line: where, what."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    lines = []
    for problem in problems:
        unknown = problem["type"] == "extra_forbidden"
        what = "there is no such parameter" if unknown else problem["msg"].removeprefix("Value error, ")
        lines.append(": ".join(filter(None, [".".join(map(str, problem["loc"])), what])))
    if any(problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1 for problem in problems):
        lines.append(f"the parameters here are {', '.join(kind.model_fields)}")
    raise ValueError(f"{where}: {'; '.join(lines)}")
