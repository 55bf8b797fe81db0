"""A profile and one of its models: its prompts, its store, and where its results lie."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.benchmarks import TaskParameters
from ragkv.benchmarks.base import check_examples, exists
from ragkv.experiment.calibration import calibration_file, no_calibration, read_calibration
from ragkv.experiment.computed import ComputedSegments
from ragkv.experiment.contexts import ProfileContexts
from ragkv.experiment.inputs import check_model, find_model, model_state, state_of
from ragkv.experiment.items import Item, make_item, read_items, write_items
from ragkv.experiment.modules import code_of, import_modules
from ragkv.experiment.profile import MethodParameters, Profile, load_profile
from ragkv.loading.prefetch import PrefetchingStore
from ragkv.models.load import load_model, load_tokenizer
from ragkv.options import choose
from ragkv.parameters import Parameters
from ragkv.prompt import Prompt
from ragkv.results.files import read_rows, write_json
from ragkv.results.outputs import Outputs, model_folders
from ragkv.selectors import Selector
from ragkv.shards import Shard
from ragkv.store import Cache, KVStore, Layout, Manifest, ReadOnlyError
from ragkv.store.precompute import Precomputed, precompute


class Experiment(Parameters):
    """A profile and one of its models.

    Attributes
    ----------
    name
        The profile's name.
    root
        The folder that holds params/ and outputs/. Relative paths in a profile start there.
    model
        As the profile names it.
    profile
        Its parameters.
    """

    name: str
    root: Path
    model: str
    profile: Profile

    @classmethod
    def load(cls, profile: str, *, model: str | None = None, root: str | Path = ".") -> "Experiment":
        """Read ``params/<profile>.yaml`` below `root`; `model` is one of its models, by default the first.

        Raises
        ------
        ValueError
            No such file, or a parameter that is unknown or out of range; the message says which and what is allowed.
        """
        parameters = load_profile(profile, Path(root) / "params")
        chosen = model or parameters.models[0]
        if chosen not in parameters.models:
            raise ValueError(
                f"profile {profile!r} has no model {chosen!r}: choose one of {', '.join(parameters.models)}"
            )
        return cls(name=profile, root=Path(root), model=chosen, profile=parameters)

    @classmethod
    def load_all(cls, profile: str, *, root: str | Path = ".") -> list["Experiment"]:
        """One experiment for each of a profile's models; errors as in `load`."""
        first = cls.load(profile, root=root)
        return [first.model_copy(update={"model": model}) for model in first.profile.models]

    @property
    def outputs(self) -> Outputs:
        return Outputs(self.root / "outputs", self.name, model_folders(self.profile.models)[self.model])

    @property
    def model_source(self) -> str:
        """What `load_model` takes: the path of a local model, or its name; errors as in `inputs.find_model`."""
        return find_model(self.model, self.root)

    def missing(self) -> list[str]:
        """What the profile names and what is not there: model, files of benchmarks, calibration, learned contexts.

        A line each.
        """
        lines = []
        try:
            check_model(self.model, self.root)
            lines += self.contexts.problems()
        except (ValueError, ImportError) as error:
            lines.append(str(error))
        for name, benchmark in self.profile.benchmarks.items():
            absent = [path for path in benchmark.files(self.root) if not exists(path)]
            lines += [f"{name}: there is no file or folder {os.path.abspath(path)}" for path in absent]
        if any(method.calibrated for method in self.profile.methods) and not self.calibration.exists():
            lines.append(no_calibration(self.calibration))
        return lines

    def check_inputs(self) -> None:
        """Check that everything that the profile names exists, before anything is loaded.

        Raises
        ------
        ValueError
            Something is `missing`; the message is one line.
        """
        if lines := self.missing():
            raise ValueError("; ".join(lines))

    @property
    def model_state(self) -> str:
        """Changes when the model's files do."""
        return model_state(self.model, self.root)

    @property
    def benchmark_state(self) -> str:
        """Changes when the files of benchmarks do."""
        files = [path for benchmark in self.profile.benchmarks.values() for path in benchmark.files(self.root)]
        return state_of(files, without=self.root / "outputs")

    @property
    def contexts(self) -> ProfileContexts:
        """The learned contexts that methods use."""
        return ProfileContexts(self.profile.offline, self.model, self.outputs.folder.name, self.root)

    def load_model(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model and its tokenizer, on the profile's device and in its dtype; errors as in `ragkv.load_model`."""
        return load_model(self.model_source, device=self.profile.device, dtype=self.profile.dtype)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer alone."""
        return load_tokenizer(self.model_source)

    @property
    def module_files(self) -> list[Path]:
        """The files of the profile's `modules`."""
        return import_modules(self.profile.modules, self.root)

    def modules_code(self) -> str:
        """A hash of the code in the profile's `modules`; empty without any."""
        files = self.module_files
        return code_of(files) if files else ""

    def store(self, format: str = "model") -> KVStore:
        """The profile's store, for segments in that format."""
        parameters = self.profile.store
        url = parameters.url or self.outputs.store
        if parameters.url is not None and "://" not in parameters.url:
            url = str(self.root / Path(parameters.url).expanduser())
        cache = None
        if parameters.cache:
            cache = Cache(self.root / Path(parameters.cache).expanduser(), parameters.cache_gigabytes * 1e9)
        return KVStore(url, format=format, cache=cache)

    def read_ahead(self, model: PreTrainedModel, format: str = "model") -> PrefetchingStore | ComputedSegments:
        """The segments of an evaluation's prompts: read from the store ahead of time, or computed if it keeps none."""
        if not self.profile.store.keep:
            return ComputedSegments(model)
        return PrefetchingStore(self.store(format), Layout.of(model, format))

    def precompute(self, model: PreTrainedModel, *, shard: str | None = None, progress: bool = False) -> Precomputed:
        """Compute and store what all prompts need, in every way that some method wants it; or a `shard` (``"0/2"``).

        The store's manifest lists it afterwards. Segments that exist already are not evicted meanwhile. Nothing is done
        where the profile stores no segments.
        """
        if not self.profile.store.keep:
            return Precomputed(0, 0, 0, 0, 0.0)
        part = Shard.parse(shard)
        prompts = [item.prompt for task in self.tasks for item in self.items(*task)]
        manifest = self.manifest(model)
        store = self.store()
        with suppress(ReadOnlyError):  # a read-only store may hold everything already
            store.manifests.write(self.outputs.manifest, manifest)
        done = []
        with store.hold(manifest.references, f"precompute {self.name}, {self.model}"):
            for offline, learned in self.contexts.load(model).items():
                placed = (offline.prompt(prompt, model.config.bos_token_id, learned) for prompt in prompts)
                done.append(precompute(model, placed, self.store(offline.format), shard=part, progress=progress))
        return sum(done[1:], done[0])

    def manifest(self, model: PreTrainedModel) -> Manifest:
        """The segments that every task's prompts need, in every way that some method wants them."""
        tasks = {"/".join(task): (item.prompt for item in self.items(*task)) for task in self.tasks}
        return Manifest.of({task: self.keys(model, prompts) for task, prompts in tasks.items()})

    def keys(self, model: PreTrainedModel, prompts: Iterable[Prompt]) -> list[str]:
        """The names in the store of the segments that these prompts need, each as often as they need it."""
        layouts = {offline: Layout.of(model, offline.format) for offline in self.profile.offline}
        contexts = self.contexts.load(model)
        bos = model.config.bos_token_id
        return [
            layout.key(segment)
            for prompt in prompts
            for offline, layout in layouts.items()
            for segment in offline.prompt(prompt, bos, contexts[offline]).segments(bos)
        ]

    @contextmanager
    def holding(self, model: PreTrainedModel, prompts: Iterable[Prompt], job: str) -> Iterator[None]:
        """While a job runs, the segments that these prompts need are not evicted, and count as used."""
        if not self.profile.store.keep:
            yield
            return
        store = self.store()
        with store.hold(self.keys(model, prompts), f"{job}, {self.name}, {self.model}"):
            with suppress(ReadOnlyError):
                store.manifests.mark_used(self.outputs.manifest)
            yield

    @property
    def calibration(self) -> Path:
        """The file with the model's calibration."""
        return calibration_file(self.root, self.outputs.folder.name)

    def selectors(self, method: MethodParameters, ratios: list[float], weights: str) -> list[Selector]:
        """A method's selector at each ratio, with the model's calibration where the profile wants it.

        Parameters
        ----------
        weights
            The model's fingerprint.

        Raises
        ------
        ValueError
            There is no calibration, or it is another model's.
        """
        calibration = read_calibration(self.calibration, weights) if method.calibrated else None
        return method.selectors(ratios, self.model, calibration)

    @property
    def tasks(self) -> list[tuple[str, str]]:
        """(benchmark, task) of everything in the profile."""
        return [(name, task) for name, benchmark in self.profile.benchmarks.items() for task in benchmark.tasks]

    def parameters(self, benchmark: str, task: str) -> TaskParameters:
        """The profile's parameters of a task."""
        return choose(f"task of {benchmark} in this profile", task, self.profile.benchmark(benchmark).tasks)

    def chunk(self, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
        """Build every task's prompts and write them for the steps that follow. Files that would not change are kept.

        Returns
        -------
        DataFrame
            ``benchmark, task, prompts, skipped``, and of the longest prompt ``chunks, document_tokens,
            question_tokens``. What was skipped and why is in the files' ``skipped``.
        """
        table = []
        for name, task in self.tasks:
            benchmark = self.profile.benchmark(name)
            examples, skipped = benchmark.examples(task, tokenizer, self.root)
            if not examples:
                raise ValueError(f"{name}, task {task}: no prompt is left; skipped were {'; '.join(skipped[:3])}")
            check_examples(f"{name}, task {task}", examples)
            items = [
                make_item(tokenizer, example, benchmark.task(task), self.profile, benchmark.max_tokens)
                for example in examples
            ]
            write_items(self.outputs.prompts(name, task), items, skipped)
            longest = max((item.prompt for item in items), key=lambda prompt: len(prompt.ids))
            table.append(
                {
                    "benchmark": name,
                    "task": task,
                    "prompts": len(items),
                    "skipped": len(skipped),
                    "chunks": len(longest.chunks),
                    "document_tokens": len(longest.document_span),
                    "question_tokens": len(longest.question),
                }
            )
        write_json(self.outputs.chunking, table, keep_unchanged=True, checked=True)
        return pd.DataFrame(table)

    def items(self, benchmark: str, task: str) -> list[Item]:
        """The prompts that `chunk` wrote."""
        self.parameters(benchmark, task)
        return read_items(self.outputs.prompts(benchmark, task))

    def rows(self, benchmark: str, task: str) -> pd.DataFrame:
        """The results that `ragkv.experiment.evaluation.evaluate` wrote.

        Raises
        ------
        FileNotFoundError
            The task was not evaluated yet.
        DamagedError
            The table does not match its checksum.
        """
        self.parameters(benchmark, task)
        return read_rows(self.outputs.rows(benchmark, task), f"of the benchmark {benchmark} for the task {task!r}")
