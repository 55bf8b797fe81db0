"""The evaluation of a task, (prompts x methods) to a table of results: one loop for all benchmarks."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import pandas as pd
import torch
import transformers
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.benchmarks import Task, TaskParameters
from ragkv.eviction import Eviction
from ragkv.experiment.experiment import Experiment
from ragkv.experiment.items import Item
from ragkv.experiment.offline import Offline
from ragkv.experiment.profile import Profile
from ragkv.fusion.decoding import decode
from ragkv.fusion.prefill import Prefill, fused_prefill
from ragkv.loading.prefetch import ReadAhead
from ragkv.models.fingerprint import fingerprint
from ragkv.prompt import Prompt
from ragkv.results.comparison import summarise
from ragkv.results.files import (
    append_rows,
    read_json,
    read_partial,
    read_rows,
    rows_so_far,
    write_json,
    write_rows,
)
from ragkv.results.outputs import Outputs
from ragkv.results.provenance import provenance
from ragkv.selectors import Selector
from ragkv.shards import Shard
from ragkv.store import Layout
from ragkv.version import __version__


class Method(NamedTuple):
    """What one row of results is made by: a selector, named as in the tables and as in the registry."""

    name: str
    kind: str
    selector: Selector
    offline: Offline = Offline()
    eviction: Eviction | None = None


def evaluate(
    experiment: Experiment,
    benchmark: str,
    task: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    shard: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Answer every prompt of a task with every method; a row each, also written to the experiment's outputs.

    Rows are kept as they come: after an interruption the same call goes on where it stopped, and what was finished
    with the same parameters is read again. A `shard` (``"0/2"``) answers its part of the prompts; the same call without
    one then finds nothing left to answer, and writes the rows of all as one table. While one prompt's answers are
    decoded, the next one's keys and values are read into memory; so TTFT here is from keys and values in host memory.

    Returns
    -------
    DataFrame
        ``prompt``, its labels, ``method, selector, ratio, prediction, answers, score``, a ``metric_<name>`` each,
        ``ttft, tpot, load, select, prompt_tokens, document_tokens, share, stored_bytes, cache_tokens,
        cache_bytes, recomputed``: times in seconds, the share of the document that was recomputed, the files that the
        prompt is fused from, the cache after the prefill, ``recomputed`` the positions.
    """
    profile, outputs, part = experiment.profile, experiment.outputs, Shard.parse(shard)
    parameters, kind = experiment.parameters(benchmark, task), profile.benchmark(benchmark).task(task)
    methods = [
        Method(method.name, method.selector, s, method.offline, method.evicts())
        for method in profile.methods
        for s in experiment.selectors(method, parameters.ratios, model)
    ]
    items = experiment.items(benchmark, task)
    mine, identity = part.take(items), _identity(model, parameters, profile, methods, items)
    about = {"benchmark": benchmark, "task": task, "identity": identity}
    table = _finished(outputs, benchmark, task, identity, mine)
    if table is None:
        run = _Run(experiment, model, tokenizer, kind, parameters.max_new_tokens or kind.max_new_tokens)
        own = part.path(outputs.partial(benchmark, task, identity))
        others = [rows_so_far(path) for path in outputs.partials(benchmark, task, identity) if path != own]
        known = sum(others, read_partial(own))
        table = pd.DataFrame(run.rows(mine, methods, known, own, name=task, progress=progress))
        if part.whole:
            write_rows(outputs.rows(benchmark, task), table)
            write_json(outputs.summary(benchmark, task), about | _summary(experiment, benchmark, task, model, table))
            for path in outputs.partials(benchmark, task, identity):
                path.unlink(missing_ok=True)
    if not part.whole:
        write_json(part.path(outputs.summary(benchmark, task)), about | {"prompts": len(mine)})
    return table


def evaluate_tasks(
    experiment: Experiment,
    benchmark: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Iterable[str] | None = None,
    **options: Any,
) -> dict[str, pd.DataFrame]:
    """`evaluate` each of a benchmark's tasks, by default all of the profile's, and give the results by task.

    A task of which a shard has no prompt is left out.

    Raises
    ------
    ValueError
        The shard has no prompt of any of them.
    """
    names = list(tasks or experiment.profile.benchmark(benchmark).tasks)
    results = {task: evaluate(experiment, benchmark, task, model, tokenizer, **options) for task in names}
    if not any(map(len, results.values())):
        most = max(len(experiment.items(benchmark, task)) for task in names)
        raise ValueError(f"{benchmark}: shard {options.get('shard')} has no prompt; make at most {most} shards")
    return {task: rows for task, rows in results.items() if len(rows)}


def _summary(
    experiment: Experiment, benchmark: str, task: str, model: PreTrainedModel, table: pd.DataFrame
) -> dict[str, Any]:
    """What is written beside the rows."""
    profile = experiment.profile
    return {
        "summary": summarise(table).to_dict("records"),
        "parameters": {"profile": experiment.name, "model": experiment.model}
        | json.loads(profile.model_dump_json(exclude={"benchmarks"}))
        | {"benchmark": json.loads(profile.benchmark(benchmark).model_dump_json(exclude={"tasks"}))}
        | {"task": json.loads(experiment.parameters(benchmark, task).model_dump_json())},
        "provenance": provenance(model),
    }


Placed = dict[Offline, Prompt]  # a prompt in every way in which its methods want its chunks computed


class _Run:
    """One prompt at a time through every method."""

    def __init__(
        self,
        experiment: Experiment,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        max_new_tokens: int,
    ):
        self.experiment = experiment
        self.model, self.tokenizer, self.task, self.max_new_tokens = model, tokenizer, task, max_new_tokens
        self.backend, self.bos = experiment.profile.backend, model.config.bos_token_id
        self.layouts = {offline.format: Layout.of(model, offline.format) for offline in experiment.profile.offline}
        self.stores = {name: experiment.store(name) for name in self.layouts}
        self.ahead = {name: ReadAhead(self.stores[name], layout) for name, layout in self.layouts.items()}

    def rows(
        self, items: list[Item], methods: list[Method], known: list[dict], partial: Path, *, name: str, progress: bool
    ) -> list[dict]:
        """A row for every item and method, in this order; those not `known` are answered and added to `partial`."""
        found = {_key(row): row for row in known}
        left = [(item, [m for m in methods if (item.id, m.name, m.selector.ratio) not in found]) for item in items]
        left = [(item, some) for item, some in left if some]
        with self.experiment.holding(self.model, (item.prompt for item, _ in left), f"evaluate {name}"):
            prompts = self.placed(*left[0]) if left else {}
            for _, some in left[:1]:  # first-call costs are no TTFT
                self.prefill(prompts, some[0])
            bar = tqdm(
                left, name, unit="prompt", initial=len(items) - len(left), total=len(items), disable=not progress
            )
            for (item, some), after in zip(bar, [*left, None][1:], strict=True):
                coming = self.placed(*after) if after else {}
                new = list(self.answers(item, some, prompts, coming))
                append_rows(partial, new)
                found |= {_key(row): row for row in new}
                prompts = coming
                bar.set_postfix_str(_running(list(found.values())), refresh=False)
        return [found[item.id, method.name, method.selector.ratio] for item in items for method in methods]

    def placed(self, item: Item, methods: list[Method]) -> Placed:
        ways = dict.fromkeys(method.offline for method in methods)
        return {offline: offline.prompt(item.prompt, self.bos) for offline in ways}

    def prefill(self, prompts: Placed, method: Method) -> Prefill:
        prompt, store = prompts[method.offline], self.ahead[method.offline.format]
        return fused_prefill(self.model, prompt, store, method.selector, eviction=method.eviction, backend=self.backend)

    def fetch(self, prompts: Placed) -> None:
        """Begin to read what these prompts need."""
        for name, ahead in self.ahead.items():
            needed = [p.segments(self.bos) for offline, p in prompts.items() if offline.format == name]
            ahead.fetch(segment for segments in needed for segment in segments)

    def stored_bytes(self, prompts: Placed) -> dict[Offline, int]:
        """The size of the files that each of these prompts is fused from."""
        sizes = {}
        for offline, prompt in prompts.items():
            store, layout = self.stores[offline.format], self.layouts[offline.format]
            sizes[offline] = sum(store.size(layout, segment) for segment in set(prompt.segments(self.bos)))
        return sizes

    def answers(self, item: Item, methods: list[Method], prompts: Placed, coming: Placed) -> Iterator[dict]:
        """A row per method; what is `coming` next is read ahead while the first answer is decoded."""
        prompt, stored, ended = item.prompt, self.stored_bytes(prompts), self.task.ended(self.tokenizer)
        self.fetch(prompts)
        for number, method in enumerate(methods):
            for ahead in self.ahead.values():
                ahead.wait()
            start = perf_counter()
            prefill = self.prefill(prompts, method)
            int(prefill.logits.argmax())  # the first token is on the host
            ttft = perf_counter() - start
            if number == 0 and coming:
                self.fetch(coming)
            answer = decode(self.model, prefill, max_new_tokens=self.max_new_tokens, ended=ended)
            prediction = self.tokenizer.decode(answer.ids, skip_special_tokens=True)
            scores = self.task.scores(prediction, item.answers, item.classes)
            yield {
                "prompt": item.id,
                **item.labels,
                "method": method.name,
                "selector": method.kind,
                "ratio": method.selector.ratio,
                "prediction": prediction,
                "answers": list(item.answers),
                "score": next(iter(scores.values())),
                **{f"metric_{metric}": score for metric, score in scores.items()},
                "ttft": ttft,
                "tpot": answer.tpot,
                "load": prefill.timings.get("open", 0.0) + prefill.timings.get("load", 0.0),
                "select": prefill.timings.get("select", 0.0),
                "prompt_tokens": len(prompt.ids),
                "document_tokens": len(prompt.document_span),
                "share": _share(prompt, prefill),
                "stored_bytes": stored[method.offline] if method.selector.reuses else 0,
                "cache_tokens": prefill.cache.get_seq_length(),
                "cache_bytes": prefill.cache_bytes,
                "recomputed": prefill.selected.tolist(),
            }


def _share(prompt: Prompt, prefill: Prefill) -> float:
    span = prompt.document_span
    inside = ((prefill.selected >= span.start) & (prefill.selected < span.stop)).sum().item()
    return inside / max(1, len(span))


def _running(rows: list[dict]) -> str:
    """The mean scores so far, by method."""
    means = pd.DataFrame(rows).groupby("method", sort=False)["score"].mean()
    return ", ".join(f"{method} {mean:.2f}" for method, mean in means.items())


def _key(row: dict) -> tuple[str, str, float]:
    return row["prompt"], row["method"], row["ratio"]


def _finished(outputs: Outputs, benchmark: str, task: str, identity: str, items: list[Item]) -> pd.DataFrame | None:
    """These items' results of an evaluation with the same parameters, if it was finished."""
    if not (outputs.summary(benchmark, task).exists() and outputs.rows(benchmark, task).exists()):
        return None
    if read_json(outputs.summary(benchmark, task), "").get("identity") != identity:
        return None
    rows = read_rows(outputs.rows(benchmark, task), "")
    return rows[rows["prompt"].isin([item.id for item in items])].reset_index(drop=True)


def _identity(
    model: PreTrainedModel, task: TaskParameters, profile: Profile, methods: list[Method], items: list[Item]
) -> str:
    """What an evaluation's rows depend on, as a short hash: rows of other parameters are never mixed in."""
    parts = [__version__, torch.__version__, transformers.__version__, fingerprint(model), str(model.dtype)]
    parts += [task.model_dump_json(), profile.model_dump_json(exclude={"benchmarks", "models", "store"})]
    parts += [repr(method) for method in methods]  # also what their calibration says
    parts += [json.dumps(asdict(item)) for item in items]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
