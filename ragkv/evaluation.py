"""The evaluation of a task, (prompts x methods) to a table of results: one loop for all benchmarks."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from time import perf_counter
from typing import NamedTuple

import pandas as pd
import torch
import transformers
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import ragkv
from ragkv.benchmarks import Task, TaskParameters
from ragkv.calibrate import read_calibration
from ragkv.comparison import summarise
from ragkv.decoding import decode
from ragkv.eviction import Eviction
from ragkv.experiment import Experiment
from ragkv.fusion import fused_prefill
from ragkv.items import Item
from ragkv.loading import ReadAhead
from ragkv.models import fingerprint
from ragkv.profile import Profile
from ragkv.prompt import Prompt
from ragkv.results import Outputs, append_rows, provenance, read_json, read_partial, read_rows, write_json, write_rows
from ragkv.selectors import Selector
from ragkv.store import Layout


class Method(NamedTuple):
    """What one row of results is made by: a selector, named as in the tables and as in the registry."""

    name: str
    kind: str
    selector: Selector
    eviction: Eviction | None = None


def evaluate(
    experiment: Experiment,
    benchmark: str,
    task: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Answer every prompt of a task with every method; a row each, also written to the experiment's outputs.

    Rows are kept as they come: after an interruption the same call goes on where it stopped, and what was finished
    with the same parameters is read again. While one prompt's answers are decoded, the next one's keys and values are
    read into memory; so TTFT here is from keys and values in host memory.

    Returns
    -------
    DataFrame
        ``prompt``, its labels, ``method, selector, ratio, prediction, answers, score``, a ``metric_<name>`` each,
        ``ttft, tpot, load, select, prompt_tokens, document_tokens, cache_tokens, cache_bytes, recomputed``: times in
        seconds, the cache after the prefill, ``recomputed`` the positions.
    """
    profile, outputs = experiment.profile, experiment.outputs
    parameters, kind = experiment.parameters(benchmark, task), profile.benchmark(benchmark).task(task)
    methods = [
        Method(method.name, method.selector, s, method.evicts())
        for method in profile.methods
        for s in method.selectors(
            parameters.ratios,
            experiment.model,
            read_calibration(experiment.calibration, model) if method.calibrated else None,
        )
    ]
    items = experiment.items(benchmark, task)
    identity = _identity(model, parameters, profile, methods, items)
    if (finished := _finished(outputs, benchmark, task, identity)) is not None:
        return finished
    partial = outputs.partial(benchmark, task, identity)
    rows = read_partial(partial)
    done = {(row["prompt"], row["method"], row["ratio"]) for row in rows}
    run = _Run(model, tokenizer, kind, parameters.max_new_tokens or kind.max_new_tokens, profile.backend)
    store = ReadAhead(experiment.store, Layout.of(model, experiment.store.format))
    left = [(item, [m for m in methods if (item.id, m.name, m.selector.ratio) not in done]) for item in items]
    left = [(item, some) for item, some in left if some]

    for item, some in left[:1]:  # first-call costs are no TTFT
        fused_prefill(model, item.prompt, store, some[0].selector, backend=profile.backend)
    shown = tqdm(left, task, unit="prompt", initial=len(items) - len(left), total=len(items), disable=not progress)
    following = [item.prompt for item, _ in left[1:]] + [None]
    for (item, some), after in zip(shown, following, strict=False):
        new = list(run.answers(item, some, store, after))
        append_rows(partial, new)
        rows += new
        shown.set_postfix_str(_running(rows), refresh=False)
    order = {(method.name, method.selector.ratio): i for i, method in enumerate(methods)}
    place = {item.id: i for i, item in enumerate(items)}
    rows.sort(key=lambda row: (place[row["prompt"]], order[row["method"], row["ratio"]]))
    table = pd.DataFrame(rows)
    write_rows(outputs.rows(benchmark, task), table)
    write_json(
        outputs.summary(benchmark, task),
        {
            "benchmark": benchmark,
            "task": task,
            "identity": identity,
            "summary": summarise(table).to_dict("records"),
            "parameters": {"profile": experiment.name, "model": experiment.model}
            | json.loads(profile.model_dump_json(exclude={"benchmarks"}))
            | {"benchmark": json.loads(profile.benchmark(benchmark).model_dump_json(exclude={"tasks"}))}
            | {"task": json.loads(parameters.model_dump_json())},
            "provenance": provenance(model),
        },
    )
    partial.unlink(missing_ok=True)
    return table


class _Run:
    """One prompt at a time through every method."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, max_new_tokens: int, backend: str
    ):
        self.model, self.tokenizer, self.task = model, tokenizer, task
        self.max_new_tokens, self.backend = max_new_tokens, backend
        self.bos = model.config.bos_token_id

    def answers(self, item: Item, methods: list[Method], store: ReadAhead, after: Prompt | None) -> Iterator[dict]:
        """A row per method; `after` is the next prompt, read ahead while the first answer is decoded."""
        prompt = item.prompt
        store.fetch(prompt.segments(self.bos))
        for number, (name, kind, selector, eviction) in enumerate(methods):
            store.wait()
            start = perf_counter()
            prefill = fused_prefill(self.model, prompt, store, selector, eviction=eviction, backend=self.backend)
            int(prefill.logits.argmax())  # the first token is on the host
            ttft = perf_counter() - start
            if number == 0 and after is not None:
                store.fetch(after.segments(self.bos))
            answer = decode(self.model, prefill, max_new_tokens=self.max_new_tokens, ended=self._ended())
            prediction = self.tokenizer.decode(answer.ids, skip_special_tokens=True)
            scores = self.task.scores(prediction, item.answers, item.classes)
            yield {
                "prompt": item.id,
                **item.labels,
                "method": name,
                "selector": kind,
                "ratio": selector.ratio,
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
                "cache_tokens": prefill.cache.get_seq_length(),
                "cache_bytes": prefill.cache_bytes,
                "recomputed": prefill.selected.tolist(),
            }

    def _ended(self) -> Callable[[list[int]], bool] | None:
        stop = self.task.stop
        if stop is None:
            return None
        return lambda ids: stop in self.tokenizer.decode(ids, skip_special_tokens=True).lstrip(stop)


def _running(rows: list[dict]) -> str:
    """The mean scores so far, by method."""
    means = pd.DataFrame(rows).groupby("method", sort=False)["score"].mean()
    return ", ".join(f"{method} {mean:.2f}" for method, mean in means.items())


def _finished(outputs: Outputs, benchmark: str, task: str, identity: str) -> pd.DataFrame | None:
    """The results of an evaluation with the same parameters, if it was finished."""
    if not (outputs.summary(benchmark, task).exists() and outputs.rows(benchmark, task).exists()):
        return None
    if read_json(outputs.summary(benchmark, task), "").get("identity") != identity:
        return None
    return read_rows(outputs.rows(benchmark, task), "")


def _identity(
    model: PreTrainedModel, task: TaskParameters, profile: Profile, methods: list[Method], items: list[Item]
) -> str:
    """What an evaluation's rows depend on, as a short hash: rows of other parameters are never mixed in."""
    parts = [ragkv.__version__, torch.__version__, transformers.__version__, fingerprint(model), str(model.dtype)]
    parts += [task.model_dump_json(), profile.model_dump_json(exclude={"benchmarks", "models"})]
    parts += [repr(method) for method in methods]  # also what their calibration says
    parts += [json.dumps(asdict(item)) for item in items]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
