"""The evaluation of a task: prompts times methods become a table of results, for every benchmark alike."""

import json
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.experiment.experiment import Experiment
from ragkv.experiment.finished import finished_rows
from ragkv.experiment.methods import depends_on, identity, methods_of
from ragkv.experiment.prompt_loop import PromptLoop
from ragkv.models.fingerprint import fingerprint
from ragkv.results.comparison import summarise
from ragkv.results.fidelity import fidelity_by_method
from ragkv.results.files import write_json, write_rows
from ragkv.results.partial import rows_so_far
from ragkv.results.provenance import provenance
from ragkv.shards import Shard


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
    """Answer every prompt of a task with every method: one row each, also written to the experiment's outputs.

    Rows are written as they come, to a file of this process: after an interruption the same call resumes where it
    stopped, and a task that was finished with the same parameters is only read. A finished table stays until its
    successor is whole; one that is damaged is named in a warning and computed again. With a `shard` (``"0/2"``) the
    call answers its part of the prompts; the same call without a shard then finds all answers and writes them as one
    table. A prompt's keys and values are read into memory ahead of time, once for all methods and while nothing is
    timed, so TTFT is measured from host memory. On a GPU all methods run in one workspace.

    Returns
    -------
    DataFrame
        ``prompt``, its labels, ``method, selector, ratio, prediction, answers, score``, a ``metric_<name>`` each;
        ``kl_first, kl, agreement_first, agreement, nll`` (against the profile's full prefill; without one there are no
        such columns, see `ragkv.results.fidelity.fidelity`); ``ttft, tpot, load, select`` (seconds),
        ``prompt_tokens, document_tokens, share`` (of the document that was recomputed), ``stored_bytes`` (of the files
        that the prompt is fused from), ``cache_tokens, cache_bytes`` (after the prefill), ``recomputed`` (positions).
    """
    part = Shard.parse(shard)
    outputs = experiment.outputs
    weights = fingerprint(model)
    parts = depends_on(experiment, benchmark, task, weights, str(model.dtype))
    evaluation = identity(parts)
    items = experiment.items(benchmark, task)
    mine = part.take(items)
    header = {"benchmark": benchmark, "task": task, "identity": evaluation}
    table = finished_rows(outputs, benchmark, task, evaluation)
    if table is None:
        parameters = experiment.parameters(benchmark, task)
        kind = experiment.profile.benchmark(benchmark).task(task)
        max_new_tokens = parameters.max_new_tokens or kind.max_new_tokens
        longest_prompt = max(len(item.prompt.ids) for item in items)
        loop = PromptLoop(experiment, model, tokenizer, kind, max_new_tokens, longest_prompt)
        methods = methods_of(experiment, parameters, weights)
        process = uuid4().hex[:8] if part.whole else f"{part.name}-{uuid4().hex[:8]}"
        own = outputs.partial(benchmark, task, evaluation, process)
        known = [row for path in outputs.partials(benchmark, task, evaluation) for row in rows_so_far(path)]
        table = pd.DataFrame(loop.rows(mine, methods, known, own, name=task, progress=progress))
        if part.whole:
            table.attrs["identity"] = evaluation  # pairs the table with its summary
            write_rows(outputs.rows(benchmark, task), table)
            content = header | _summary(experiment, benchmark, task, model, table) | {"depends": parts}
            write_json(outputs.summary(benchmark, task), content, checked=True)
    else:
        table = table[table["prompt"].isin([item.id for item in mine])].reset_index(drop=True)
    if not part.whole:
        write_json(part.path(outputs.summary(benchmark, task)), header | {"prompts": len(mine)})
    return table


def evaluate_tasks(
    experiment: Experiment,
    benchmark: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Iterable[str] | None = None,
    **options: Any,
) -> dict[str, pd.DataFrame]:
    """`evaluate` some of a benchmark's tasks, by default all in the profile; returns the results by task.

    A task of which the shard has no prompt is left out.

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
    """What is written beside the rows: mean scores, fidelity, parameters, and the versions they were measured with."""
    profile = experiment.profile
    return {
        "summary": _records(summarise(table)),
        "fidelity": _records(fidelity_by_method(table)),
        "parameters": {"profile": experiment.name, "model": experiment.model}
        | json.loads(profile.model_dump_json(exclude={"benchmarks"}))
        | {"benchmark": json.loads(profile.benchmark(benchmark).model_dump_json(exclude={"tasks"}))}
        | {"task": json.loads(experiment.parameters(benchmark, task).model_dump_json())},
        "provenance": provenance(model),
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows as JSON has them: null for what is not a number."""
    return table.astype(object).where(table.notna(), None).to_dict("records")
