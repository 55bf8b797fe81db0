"""The loop of an evaluation: every prompt through every method, the next prompt read while this one is answered."""

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import pandas as pd
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.benchmarks import Task
from ragkv.experiment.experiment import Experiment
from ragkv.experiment.fidelity import Reference, forced_logits
from ragkv.experiment.items import Item
from ragkv.experiment.methods import Method
from ragkv.experiment.offline import Offline
from ragkv.experiment.rows import Row, make_row, row_key
from ragkv.fusion.decoding import Generation, decode
from ragkv.fusion.prefill import Prefill, fused_prefill
from ragkv.fusion.workspace import Workspace
from ragkv.prompt import Prompt
from ragkv.results.partial import append_rows

Prompts = dict[Offline, Prompt]  # one prompt, for every way in which its methods want its chunks computed
Work = tuple[Item, list[Method]]  # a prompt, and the methods that answer it


class PromptLoop:
    """Answers prompts, one after the other, with every method.

    Parameters
    ----------
    task
        How answers end and are scored.
    max_new_tokens
        The longest answer.
    longest_prompt
        Tokens of the task's longest prompt, of all shards together: a workspace of this size is the same for each.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        max_new_tokens: int,
        longest_prompt: int,
    ):
        self.experiment = experiment
        self.model = model
        self.tokenizer = tokenizer
        self.task = task
        self.max_new_tokens = max_new_tokens
        self.backend = experiment.profile.backend
        self.workspace = Workspace.if_faster(model, longest_prompt + max_new_tokens, self.backend)
        self.bos = model.config.bos_token_id
        self.contexts = experiment.contexts.load(model)
        formats = dict.fromkeys(offline.format for offline in experiment.profile.offline)
        self.ahead = {format: experiment.read_ahead(model, format) for format in formats}

    def rows(
        self, items: list[Item], methods: list[Method], known: list[Row], partial: Path, *, name: str, progress: bool
    ) -> list[Row]:
        """A row for every item and method, in this order.

        Parameters
        ----------
        known
            Rows that exist already; only the others are computed, with the full prefill that they are compared with.
        partial
            The file to which new rows are added, prompt by prompt.
        name
            What the progress bar and the store's lease call this run.
        """
        rows = {row_key(row): row for row in known}
        work: list[Work] = []
        for item in items:
            missing = [method for method in methods if (item.id, method.name, method.selector.ratio) not in rows]
            if missing:
                work.append((item, _exact_first(missing, methods)))
        with self.experiment.holding(self.model, (item.prompt for item, _ in work), f"evaluate {name}"):
            prompts = self.prompts(*work[0]) if work else {}
            for _, missing in work[:1]:  # warm up: the cost of the first call must not count as TTFT
                self.prefill(prompts, missing[0])
            bar = tqdm(
                work, name, unit="prompt", initial=len(items) - len(work), total=len(items), disable=not progress
            )
            for (item, missing), following in zip(bar, [*work, None][1:], strict=True):
                next_prompts = self.prompts(*following) if following else {}
                new = list(self.answers(item, missing, prompts, next_prompts))
                append_rows(partial, new)
                rows |= {row_key(row): row for row in new}
                prompts = next_prompts
                bar.set_postfix_str(_mean_scores(list(rows.values())), refresh=False)
        return [rows[item.id, method.name, method.selector.ratio] for item in items for method in methods]

    def prompts(self, item: Item, methods: list[Method]) -> Prompts:
        """The item's prompt, for each way in which these methods want chunks computed."""
        ways = dict.fromkeys(method.offline for method in methods)
        return {offline: offline.prompt(item.prompt, self.bos, self.contexts[offline]) for offline in ways}

    def prefill(self, prompts: Prompts, method: Method) -> Prefill:
        """The fused prefill of a method. In a workspace, its cache lasts until the next one."""
        return fused_prefill(
            self.model,
            prompts[method.offline],
            self.ahead[method.offline.format],
            method.selector,
            eviction=method.eviction,
            backend=self.backend,
            workspace=self.workspace,
        )

    def fetch(self, prompts: Prompts) -> None:
        """Start to read the segments of these prompts into memory, or compute them there, once for all methods."""
        for format, ahead in self.ahead.items():
            for_format = [prompt for offline, prompt in prompts.items() if offline.format == format]
            ahead.prefetch(segment for prompt in for_format for segment in prompt.segments(self.bos))

    def stored_bytes(self, prompts: Prompts) -> dict[Offline, int]:
        """The size of the files, or of what is in memory instead, from which each of these prompts is fused."""
        sizes = {}
        for offline, prompt in prompts.items():
            ahead = self.ahead[offline.format]
            sizes[offline] = sum(ahead.size(segment) for segment in set(prompt.segments(self.bos)))
        return sizes

    def answers(self, item: Item, methods: list[Method], prompts: Prompts, next_prompts: Prompts) -> Iterator[Row]:
        """A row per method; `next_prompts` are read ahead once the first answer is decoded.

        If the first method is a full prefill, the others are compared with it along its answer.
        """
        sizes = self.stored_bytes(prompts)
        reference: Reference | None = None
        self.fetch(prompts)
        for number, method in enumerate(methods):
            for ahead in self.ahead.values():
                ahead.wait()
            start = perf_counter()
            prefill = self.prefill(prompts, method)
            int(prefill.logits.argmax())  # waits until the first token is on the host
            ttft = perf_counter() - start
            if reference is None:
                answer = self.decode(prefill)
                if number == 0:
                    self.fetch(next_prompts)  # not earlier: reading would slow down what is timed
                if method.exact:
                    reference = Reference.of(self.model, prefill, answer)
                fidelity = reference.fidelity(reference.logits) if reference else {}
            else:
                answer, fidelity = self.compared(method, prefill, reference)
            prediction = self.tokenizer.decode(answer.ids, skip_special_tokens=True)
            scores = self.task.score(prediction, item.answers, item.classes)
            size = sizes[method.offline]
            yield make_row(item, method, prefill, prediction, scores, fidelity, ttft=ttft, tpot=answer.tpot, size=size)

    def decode(self, prefill: Prefill) -> Generation:
        ended = self.task.ended(self.tokenizer)
        return decode(self.model, prefill, max_new_tokens=self.max_new_tokens, ended=ended)

    def compared(self, method: Method, prefill: Prefill, reference: Reference) -> tuple[Generation, dict[str, float]]:
        """A method's answer, and its fidelity to full prefill.

        Where the method would choose every token of full prefill's answer, that is its greedy answer too, and it is not
        decoded again: it then has no TPOT. A method that evicts always decodes, because its cache is what TPOT depends
        on; without an eviction the cache is as long as full prefill's.
        """
        logits = forced_logits(self.model, prefill, reference.ids)
        fidelity = reference.fidelity(logits)
        if method.eviction is None and reference.is_greedy_answer(logits):
            return Generation(reference.answer, None, prefill.cache), fidelity
        return self.decode(prefill), fidelity


def _exact_first(missing: list[Method], methods: list[Method]) -> list[Method]:
    """The missing methods behind the full prefill that they are compared with, if the evaluation has one.

    It comes first even if its own row is known: its logits are not.
    """
    exact = next((method for method in methods if method.exact), None)
    if exact is None:
        return missing
    return [exact, *(method for method in missing if method is not exact)]


def _mean_scores(rows: list[Row]) -> str:
    """The mean scores so far, by method."""
    means = pd.DataFrame(rows).groupby("method", sort=False)["score"].mean()
    return ", ".join(f"{method} {mean:.2f}" for method, mean in means.items())
