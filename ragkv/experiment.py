"""What a notebook runs: a profile's prompts, and their evaluation, (prompts x methods) to a table of results."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import pandas as pd
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.benchmarks import Example, build_prompt, get_task
from ragkv.decoding import decode
from ragkv.fusion import fused_prefill
from ragkv.models import fingerprint
from ragkv.parameters import Parameters, Profile, TaskParameters, load_profile
from ragkv.prompt import Prompt
from ragkv.results import Outputs, append_rows, provenance, read_json, read_partial, read_rows, write_json, write_rows
from ragkv.store import KVStore


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
        return Outputs(self.root / "outputs", self.name, self.model, self.profile.benchmark)

    @property
    def store(self) -> KVStore:
        return KVStore(self.outputs.store)

    def examples(self, task: str) -> list[Example]:
        """The task's examples, made anew from its seed."""
        parameters = self.profile.task(task)
        make = get_task(self.profile.benchmark, task).examples
        return make(parameters.prompts, parameters.length, parameters.seed)

    def chunk(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Prompt]]:
        """Build every task's prompts and write them for the notebooks that follow."""
        prompts = {
            task: [build_prompt(tokenizer, example, self.profile.chunk_tokens) for example in self.examples(task)]
            for task in self.profile.tasks
        }
        if self.profile.context == "prefix":
            prompts = {task: [prompt.behind_prefix() for prompt in some] for task, some in prompts.items()}
        write_json(self.outputs.prompts, {task: [asdict(p) for p in some] for task, some in prompts.items()})
        return prompts

    def prompts(self) -> dict[str, list[Prompt]]:
        """The prompts that `chunk` wrote, by task."""
        written = read_json(self.outputs.prompts, "01_chunking.ipynb")
        return {task: [Prompt(**fields) for fields in some] for task, some in written.items()}

    def rows(self, task: str) -> pd.DataFrame:
        """The results that `evaluate` wrote.

        Raises
        ------
        FileNotFoundError
            The task was not evaluated yet.
        """
        self.profile.task(task)
        return read_rows(self.outputs.rows(task), f"03_evaluation.ipynb for the task {task!r}")


def evaluate(
    experiment: Experiment,
    task: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Answer every prompt of a task with every method; a row each, also written to the experiment's outputs.

    Rows are kept as they come: after an interruption the same call goes on where it stopped.

    Returns
    -------
    DataFrame
        ``prompt, method, selector, ratio, prediction, answers, score, ttft, tpot, load, select, prompt_tokens,
        document_tokens, recomputed``: times in seconds, ``recomputed`` the positions.
    """
    profile, outputs, store = experiment.profile, experiment.outputs, experiment.store
    parameters = profile.task(task)
    methods = [(method, s) for method in profile.methods for s in method.selectors(parameters.ratios)]
    prompts, examples = experiment.prompts()[task], experiment.examples(task)
    score = get_task(profile.benchmark, task).score
    partial = outputs.partial(task, _identity(model, parameters, profile, prompts))
    rows = read_partial(partial)
    done = {(row["prompt"], row["method"], row["ratio"]) for row in rows}

    fused_prefill(model, prompts[0], store, methods[0][1], backend=profile.backend)  # first-call costs are no TTFT
    shown = tqdm(prompts, task, unit="prompt") if progress else prompts
    for prompt, example in zip(shown, examples, strict=True):
        new = []
        for method, selector in methods:
            if (example.id, method.name, selector.ratio) in done:
                continue
            start = perf_counter()
            prefill = fused_prefill(model, prompt, store, selector, backend=profile.backend)
            int(prefill.logits.argmax())  # the first token is on the host
            ttft = perf_counter() - start
            answer = decode(model, prefill, max_new_tokens=profile.max_new_tokens)
            prediction = tokenizer.decode(answer.ids, skip_special_tokens=True)
            new.append(
                {
                    "prompt": example.id,
                    "method": method.name,
                    "selector": method.selector,
                    "ratio": selector.ratio,
                    "prediction": prediction,
                    "answers": list(example.answers),
                    "score": score(prediction, example.answers),
                    "ttft": ttft,
                    "tpot": answer.tpot,
                    "load": prefill.timings.get("open", 0.0) + prefill.timings.get("load", 0.0),
                    "select": prefill.timings.get("select", 0.0),
                    "prompt_tokens": len(prompt.ids),
                    "document_tokens": len(prompt.document_span),
                    "recomputed": prefill.selected.tolist(),
                }
            )
        append_rows(partial, new)
        rows += new
    table = pd.DataFrame(rows)
    write_rows(outputs.rows(task), table)
    write_json(
        outputs.summary(task),
        {
            "task": task,
            "summary": summarise(table).to_dict("records"),
            "parameters": json.loads(profile.model_dump_json())
            | {"profile": experiment.name, "model": experiment.model},
            "provenance": provenance(model),
        },
    )
    partial.unlink(missing_ok=True)
    return table


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean score and median times by method and ratio, in the order of the rows."""
    groups = rows.groupby(["method", "ratio"], sort=False)
    return groups.agg(
        score=("score", "mean"), prompts=("score", "size"), ttft=("ttft", "median"), tpot=("tpot", "median")
    ).reset_index()


def _identity(model: PreTrainedModel, task: TaskParameters, profile: Profile, prompts: list[Prompt]) -> str:
    """What an evaluation's rows depend on, as a short hash: rows of other parameters are never mixed in."""
    parts = [fingerprint(model), str(model.dtype), task.model_dump_json(), profile.model_dump_json(exclude={"tasks"})]
    parts += [json.dumps(asdict(prompt)) for prompt in prompts]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
