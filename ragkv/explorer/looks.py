"""What selectors answer and recompute for one prompt, beside a full prefill. Results are cached."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.benchmarks import Task
from ragkv.experiment.inputs import find_model
from ragkv.experiment.inspection import attention_by_layer
from ragkv.experiment.items import Item
from ragkv.experiment.profile import Profile
from ragkv.explorer.background import Progress, ignore
from ragkv.explorer.sources import Source
from ragkv.fusion.decoding import decode
from ragkv.fusion.prefill import fused_prefill
from ragkv.models.checks import check_room
from ragkv.models.load import load_model
from ragkv.prompt import Prompt
from ragkv.selectors import Selector, get_selector
from ragkv.store import KVStore
from ragkv.store.precompute import precompute

LONGEST = 64  # new tokens, enough to see whether an answer is right
STAGES = ("open", "load", "select", "compute")


@dataclass(frozen=True)
class Look:
    """The result of one selector for one prompt.

    Attributes
    ----------
    selector
        The selector.
    text
        The answer.
    scores
        The answer's scores by metric, the task's own metric first; empty if the right answer is unknown.
    selected
        Positions that were recomputed, ``(selected,)``, as in `ragkv.Prefill.selected`.
    seconds
        Seconds until the first token by stage: ``open, load, select`` as in `ragkv.Prefill.timings`, and ``compute``
        for the rest.
    """

    selector: Selector
    text: str
    scores: dict[str, float]
    selected: Tensor
    seconds: dict[str, float]

    @property
    def ttft(self) -> float:
        """Seconds until the first token."""
        return sum(self.seconds.values())


class Subject:
    """A prompt for one model. Once it is prepared, its chunks are stored.

    Attributes
    ----------
    item
        The prompt, with its question, answers and evidence.
    attention
        The question's attention over the document in a full prefill, ``(layers, document)``; empty until `prepare`.

    Raises
    ------
    ValueError
        The prompt and its answer are longer than the model can read.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, item: Item, task: Task, store: KVStore
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.item = item
        self.task = task
        self.store = store
        self.max_new_tokens = min(task.max_new_tokens, LONGEST)
        check_room(model, len(item.prompt.ids), self.max_new_tokens, "give a shorter text")
        self.attention = torch.empty(0)
        self._looks: dict[Selector, Look] = {}

    def prepare(self, progress: Progress = ignore) -> None:
        """Store the chunks and look at the question's attention, unless that has been done.

        Work that was stopped goes on with the next chunk.
        """
        if len(self.attention):
            return
        prompt = self.prompt
        for number, chunk in enumerate(prompt.chunks):
            progress("reading chunks", number, len(prompt.chunks))
            precompute(self.model, [Prompt(prompt.prefix, [chunk], prompt.question)], self.store)
        progress("full prefill", 0, 1)
        self.attention = attention_by_layer(self.model, prompt, self.store)  # also warms up, so that TTFT is fair

    @property
    def prompt(self) -> Prompt:
        return self.item.prompt

    @property
    def unknown(self) -> int:
        """The number of tokens in the prompt that stand for words the tokenizer does not know."""
        unknown = self.tokenizer.unk_token_id
        return 0 if unknown is None else self.prompt.ids.count(unknown)

    @property
    def full(self) -> Look:
        """The result of the full prefill."""
        return self.look(get_selector("full_prefill"))

    def look(self, selector: Selector) -> Look:
        """The result of a selector, computed the first time it is asked for."""
        if selector not in self._looks:
            self._looks[selector] = self._compute(selector)
        return self._looks[selector]

    def _compute(self, selector: Selector) -> Look:
        prefill = fused_prefill(self.model, self.prompt, self.store, selector)
        ended = self.task.ended(self.tokenizer)
        ids = decode(self.model, prefill, max_new_tokens=self.max_new_tokens, ended=ended).ids
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        seconds = {stage: prefill.timings.get(stage, 0.0) for stage in STAGES[:-1]}
        seconds["compute"] = prefill.timings["total"] - sum(seconds.values())
        scores = self.task.scores(text, self.item.answers, self.item.classes)
        return Look(selector, text, scores, prefill.selected, seconds)


class Looks:
    """Makes subjects from a profile's prompts and from your own text, and caches the most recent models and subjects.

    Keys and values are stored in a temporary folder that is removed with this object.

    Parameters
    ----------
    profile
        Gives the benchmarks, device and dtype, and how documents are cut.
    root
        The folder that paths in the profile are relative to.
    """

    def __init__(self, profile: Profile, root: str | Path = "."):
        self.profile = profile
        self.root = Path(root)
        self._folder = TemporaryDirectory(prefix="ragkv-")
        self._store = KVStore(self._folder.name)
        self._cached_model = lru_cache(maxsize=2)(self._load)
        self._cached_subject = lru_cache(maxsize=16)(self._make)

    def subject(
        self, model: str, source: Source, chunk_tokens: int | None = None, progress: Progress = ignore
    ) -> Subject:
        """A prompt for one model.

        Parameters
        ----------
        chunk_tokens
            The chunk size; None uses the profile's.
        progress
            Is called before each chunk is read; an error that it raises ends the work.

        Raises
        ------
        ValueError, FileNotFoundError
            The model is unknown, or the source has no prompt that this model can read; the message says why.
        StoreError
            The temporary folder cannot be written to.
        """
        progress("loading the model", 0, 1)
        subject = self._cached_subject(model, source, chunk_tokens or self.profile.chunk_tokens)
        subject.prepare(progress)
        return subject

    def _load(self, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load_model(find_model(name, self.root), device=self.profile.device, dtype=self.profile.dtype)

    def _make(self, name: str, source: Source, chunk_tokens: int) -> Subject:
        model, tokenizer = self._cached_model(name)
        profile = self.profile.model_copy(update={"chunk_tokens": chunk_tokens})
        item, task = source.item(profile, tokenizer, self.root)
        return Subject(model, tokenizer, item, task, self._store)
