"""What a notebook works on: a profile and one of its models, its prompts, and where their results lie."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.benchmarks import TaskParameters
from ragkv.experiment.calibration import read_calibration
from ragkv.experiment.items import Item, make_item, read_items, write_items
from ragkv.experiment.profile import MethodParameters, Profile, load_profile
from ragkv.options import choose
from ragkv.parameters import Parameters
from ragkv.prompt import Prompt
from ragkv.results.files import read_rows, write_json
from ragkv.results.outputs import Outputs
from ragkv.selectors import Selector
from ragkv.shards import Shard
from ragkv.store import Cache, KVStore, Layout, Manifest, ReadOnlyError
from ragkv.store.precompute import Precomputed, precompute


class Experiment(Parameters):
    """A profile and one of its models: what a notebook runs."""

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

    @property
    def outputs(self) -> Outputs:
        return Outputs(self.root / "outputs", self.name, self.model)

    def store(self, format: str = "model") -> KVStore:
        """The profile's store, for segments in that format."""
        given, url = self.profile.store, self.outputs.store
        if given.url is not None:
            url = given.url if "://" in given.url else str(self.root / given.url)
        cache = Cache(self.root / given.cache, given.cache_gigabytes * 1e9) if given.cache else None
        return KVStore(url, format=format, cache=cache)

    def precompute(self, model: PreTrainedModel, *, shard: str | None = None, progress: bool = False) -> Precomputed:
        """Compute and store what all prompts need, in every way that some method wants it; or a `shard` (``"0/2"``).

        The store's manifest says afterwards what that is; what is there already is not evicted meanwhile.
        """
        part = Shard.parse(shard)
        prompts, done = [item.prompt for task in self.tasks for item in self.items(*task)], []
        manifest, store = self.manifest(model), self.store()
        with suppress(ReadOnlyError):  # all may be there
            store.manifests.write(self.outputs.manifest, manifest)
        with store.hold(manifest.references, f"precompute {self.name}, {self.model}"):
            for offline in self.profile.offline:
                placed = (offline.prompt(prompt, model.config.bos_token_id) for prompt in prompts)
                done.append(precompute(model, placed, self.store(offline.format), shard=part, progress=progress))
        return sum(done[1:], done[0])

    def manifest(self, model: PreTrainedModel) -> Manifest:
        """Which segments every task's prompts need, in every way that some method wants them."""
        tasks = {"/".join(task): (item.prompt for item in self.items(*task)) for task in self.tasks}
        return Manifest.of({task: self.keys(model, prompts) for task, prompts in tasks.items()})

    def keys(self, model: PreTrainedModel, prompts: Iterable[Prompt]) -> list[str]:
        """The names in the store of what these prompts need, each as often as they do."""
        layouts = {offline: Layout.of(model, offline.format) for offline in self.profile.offline}
        bos = model.config.bos_token_id
        return [
            layout.key(segment)
            for prompt in prompts
            for offline, layout in layouts.items()
            for segment in offline.prompt(prompt, bos).segments(bos)
        ]

    @contextmanager
    def holding(self, model: PreTrainedModel, prompts: Iterable[Prompt], job: str) -> Iterator[None]:
        """While a job runs, what these prompts need is not evicted, and counts as used."""
        store = self.store()
        with store.hold(self.keys(model, prompts), f"{job}, {self.name}, {self.model}"):
            with suppress(ReadOnlyError):
                store.manifests.mark_used(self.outputs.manifest)
            yield

    @property
    def calibration(self) -> Path:
        """Where the model's calibration lies."""
        return self.root / "params" / "calibration" / f"{self.outputs.folder.name}.json"

    def selectors(self, method: MethodParameters, ratios: list[float], model: PreTrainedModel) -> list[Selector]:
        """A method's selector at each ratio, with what its model was calibrated to where the profile wants that.

        Raises
        ------
        ValueError
            There is no calibration, or it is another model's.
        """
        found = read_calibration(self.calibration, model) if method.calibrated else None
        return method.selectors(ratios, self.model, found)

    @property
    def tasks(self) -> list[tuple[str, str]]:
        """(benchmark, task) of everything in the profile."""
        return [(name, task) for name, benchmark in self.profile.benchmarks.items() for task in benchmark.tasks]

    def parameters(self, benchmark: str, task: str) -> TaskParameters:
        """What the profile says of a task."""
        return choose(f"task of {benchmark} in this profile", task, self.profile.benchmark(benchmark).tasks)

    def chunk(self, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
        """Build every task's prompts and write them for the notebooks that follow.

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
            items = [
                make_item(tokenizer, example, benchmark.task(task), self.profile, benchmark.max_tokens)
                for example in examples
            ]
            write_items(self.outputs.prompts(name, task), items, skipped)
            longest = max((item.prompt for item in items), key=lambda prompt: len(prompt.ids))
            table.append(
                {"benchmark": name, "task": task, "prompts": len(items), "skipped": len(skipped)}
                | {"chunks": len(longest.chunks), "document_tokens": len(longest.document_span)}
                | {"question_tokens": len(longest.question)}
            )
        write_json(self.outputs.chunking, table)
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
        """
        self.parameters(benchmark, task)
        return read_rows(self.outputs.rows(benchmark, task), f"of the benchmark {benchmark} for the task {task!r}")
