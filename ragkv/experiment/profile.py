"""What a file in params/ may say: models, benchmarks and methods, validated before anything runs."""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import (
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from ragkv.benchmarks import BENCHMARKS, Benchmark
from ragkv.eviction import EVICTIONS, Eviction, get_eviction
from ragkv.experiment.modules import import_modules
from ragkv.experiment.offline import Offline
from ragkv.experiment.profile_files import read_profile
from ragkv.options import choose
from ragkv.parameters import Parameters
from ragkv.prompt.chunking import By
from ragkv.results.outputs import Outputs, model_folders
from ragkv.selectors import Selector, get_selector, selector_options

Kind = TypeVar("Kind", bound=Parameters)
LONGEST_LABEL = 100  # characters of a method's name in tables and figures


class MethodParameters(Parameters):
    """A selector and its options. A selector that takes a ratio runs once per ratio of the task.

    Attributes
    ----------
    selector, label
        The selector's name, and the method's own name in tables where the selector's would not be unique.
    options
        The selector's options.
    options_by_model
        Options for single models; they override `options`.
    calibrated
        Also take the options in the model's own file in params/calibration, see `ragkv.experiment.calibration`.
    ratios
        Ratios to run instead of the task's.
    offline
        ``{context: learned, format: fp8}``: how chunks are computed and stored, see `ragkv.experiment.offline`.
    eviction
        ``{name: snapkv, capacity_ratio: 0.25}``: what leaves the cache after the prefill, see `ragkv.eviction`.
    """

    selector: str
    label: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    options_by_model: dict[str, dict[str, Any]] = Field(default_factory=dict)
    calibrated: bool = False
    ratios: list[float] | None = Field(default=None, min_length=1)
    offline: Offline = Offline()
    eviction: dict[str, Any] | None = None

    @field_validator("label")
    @classmethod
    def _check_label(cls, label: str | None) -> str | None:
        if label is None:
            return None
        if not label.strip() or not label.isprintable() or label.startswith("_") or len(label) > LONGEST_LABEL:
            raise ValueError(
                f"{label[:LONGEST_LABEL]!r} cannot be shown as a name: use up to {LONGEST_LABEL} characters without "
                "line breaks, that do not begin with '_'"
            )
        return label

    @field_validator("eviction")
    @classmethod
    def _check_eviction(cls, options: dict[str, Any] | None) -> dict[str, Any] | None:
        if options is not None:
            _make_eviction(options)
        return options

    @property
    def name(self) -> str:
        return self.label or self.selector

    def selectors(self, ratios: list[float], model: str, calibration: dict[str, Any] | None = None) -> list[Selector]:
        """The selector at each ratio, with its options for this model.

        Parameters
        ----------
        calibration
            Options that the model was calibrated to; those of the profile override them.
        """
        options = (calibration or {}) | self.options | self.options_by_model.get(model, {})
        if "ratio" not in selector_options(self.selector):
            return [get_selector(self.selector, **options)]
        return [get_selector(self.selector, ratio=ratio, **options) for ratio in self.ratios or ratios]

    def evicts(self) -> Eviction | None:
        """The eviction to apply after the prefill, if any."""
        return None if self.eviction is None else _make_eviction(self.eviction)


def _make_eviction(options: dict[str, Any]) -> Eviction:
    if "name" not in options:
        raise ValueError(f"an eviction needs a name: one of {', '.join(EVICTIONS)}")
    return get_eviction(**options)


class StoreParameters(Parameters):
    """Where a profile's segments are stored.

    Attributes
    ----------
    url
        A folder, relative to the root, or any fsspec URL (``s3://bucket/kv``); None is the profile's own folder in
        outputs/.
    cache, cache_gigabytes
        A local folder that caches a remote store, and the most that the cache may hold.
    keep
        Whether segments are stored. If not, precompute does nothing, and an evaluation computes the segments of each
        prompt in memory before it answers it: for many prompts whose chunks no other prompt has.
    """

    keep: bool = True
    url: str | None = None
    cache: str | None = None
    cache_gigabytes: float = Field(default=20.0, ge=0)


class Profile(Parameters):
    """What one file in params/ says.

    Attributes
    ----------
    note
        What readers of the results should know, for the top of the report. It decides nothing.
    timed
        Whether the report shows times. They say nothing if several evaluations shared a GPU or a core.
    modules
        Python files (relative to the root) or importable modules with benchmarks, selectors or evictions of your own.
        They are imported, so their code runs, whenever the profile is loaded.
    models
        Names of embedded models, local folders, or hub ids.
    benchmarks
        Each with its tasks, see `ragkv.benchmarks`.
    methods
        The selectors to compare.
    chunk_tokens, chunk_by
        How documents are cut into chunks, see `ragkv.prompt.chunking`.
    store
        Where segments are stored, by default in outputs/.
    device, dtype, backend
        Where and how models run.
    """

    note: str = ""
    timed: bool = True
    modules: list[str] = Field(default_factory=list)
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
    def _make_benchmarks(cls, benchmarks: Any) -> Any:
        """Validate each benchmark's parameters by its own class."""
        if not isinstance(benchmarks, dict):
            return benchmarks
        return {name: _validated(BENCHMARKS.find(name), name, given) for name, given in benchmarks.items()}

    @model_validator(mode="after")
    def _check_names(self) -> "Profile":
        """Models, benchmarks and tasks can name folders and files, each its own."""
        model_folders(self.models)
        for benchmark, parameters in self.benchmarks.items():
            for task in parameters.tasks:
                Outputs(Path(), "p", "m").rows(benchmark, task)
        return self

    @model_validator(mode="after")
    def _check_methods(self) -> "Profile":
        """Every method accepts its options and ratios, and has a name of its own."""
        for method in self.methods:
            if others := set(method.options_by_model) - set(self.models):
                raise ValueError(f"{method.name} has options for {', '.join(sorted(others))}: not in models")
            for benchmark in self.benchmarks.values():
                for task in benchmark.tasks.values():
                    for model in self.models:
                        method.selectors(task.ratios, model)
            if not self.store.keep and method.offline.format != "model":
                raise ValueError(
                    f"{method.name}: a profile that keeps no segments (store: {{keep: false}}) cannot store them as "
                    f"{method.offline.format}: take out the format, or keep them"
                )
        names = [method.name for method in self.methods]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"methods named {', '.join(twice)} more than once: give each a label of its own")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_modules(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A profile without modules is written without the parameter."""
        values = serialize(self)
        if not self.modules:
            values.pop("modules", None)
        return values

    @property
    def offline(self) -> list[Offline]:
        """Every way in which some method wants chunks computed and stored; the default one always comes first."""
        return list(dict.fromkeys([Offline(), *(method.offline for method in self.methods)]))

    def benchmark(self, name: str) -> Benchmark:
        return choose("benchmark of this profile", name, self.benchmarks)


def load_profile(name: str, folder: Path) -> Profile:
    """Read ``<folder>/<name>.yaml``; with ``extends: <other>`` it changes parameters of that other file.

    The files in its ``modules``, relative to the parent of `folder`, are imported first: their code runs.

    Raises
    ------
    ValueError
        No such file, a module that cannot be imported, or a parameter that is unknown or out of range; the message
        says which and what is allowed.
    """
    path = folder / f"{name}.yaml"
    given = read_profile(name, folder)
    try:
        import_modules(_checked_modules(given.get("modules")), folder.parent)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return _validated(Profile, str(path), given)


def _checked_modules(modules: Any) -> list[str]:
    """The modules to import; none if they are not a list of texts, which validation reports afterwards."""
    valid = isinstance(modules, list) and all(isinstance(module, str) for module in modules)
    return modules if valid else []


def _validated(kind: type[Kind], name: str, given: Any) -> Kind:
    """The validated parameters; pydantic's errors become one line that says where and what."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    lines = []
    for problem in problems:
        unknown = problem["type"] == "extra_forbidden"
        what = "there is no such parameter" if unknown else problem["msg"].removeprefix("Value error, ")
        place = ".".join(map(str, problem["loc"]))
        lines.append(f"{place}: {what}" if place else what)
    if any(problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1 for problem in problems):
        lines.append(f"the parameters here are {', '.join(kind.model_fields)}")
    raise ValueError(f"{name}: {'; '.join(lines)}")
