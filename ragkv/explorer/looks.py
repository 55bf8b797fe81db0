"""Looks at a prompt: what a selector answers and recomputes, beside a full prefill. What was computed is kept."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.benchmarks import Task
from ragkv.experiment.inspection import attention_by_layer
from ragkv.experiment.items import Item
from ragkv.experiment.profile import Profile
from ragkv.explorer.sources import Source
from ragkv.fusion.decoding import decode
from ragkv.fusion.prefill import fused_prefill
from ragkv.models.checks import check_room
from ragkv.models.load import load_model
from ragkv.prompt import Prompt
from ragkv.selectors import Selector, get_selector
from ragkv.store import KVStore
from ragkv.store.precompute import precompute

LONGEST = 64  # new tokens: enough to see whether an answer is right
STAGES = ("open", "load", "select", "compute")


@dataclass(frozen=True)
class Look:
    """What a selector makes of a prompt.

    Attributes
    ----------
    selector
        The selector.
    text
        The answer.
    scores
        By the task's metrics, its own first; empty where no answer is known.
    selected
        ``(selected,)``: positions that were recomputed (`ragkv.Prefill.selected`).
    seconds
        Until the first token, by stage: ``open, load, select`` as in `ragkv.Prefill.timings`, ``compute`` the rest.
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
    """A prompt in a model, ready to be looked at: its chunks are stored.

    Attributes
    ----------
    item
        The prompt, its question, answers and evidence.
    attention
        The question's attention over the document in a full prefill, ``(layers, document)``.

    Raises
    ------
    ValueError
        The prompt and its answer are longer than the model can read.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, item: Item, task: Task, store: KVStore
    ):
        self.model, self.tokenizer, self.item, self.task, self.store = model, tokenizer, item, task, store
        self.max_new_tokens = min(task.max_new_tokens, LONGEST)
        check_room(model, item.prompt, self.max_new_tokens, "give a shorter text")
        precompute(model, [item.prompt], store)
        self.attention = attention_by_layer(model, item.prompt, store)  # first-call costs are no TTFT
        self._looks: dict[Selector, Look] = {}

    @property
    def prompt(self) -> Prompt:
        return self.item.prompt

    @property
    def unknown(self) -> int:
        """How many of the prompt's tokens stand for words that the tokenizer does not have."""
        unknown = self.tokenizer.unk_token_id
        return 0 if unknown is None else self.prompt.ids.count(unknown)

    @property
    def full(self) -> Look:
        """The full prefill's answer."""
        return self.look(get_selector("full_prefill"))

    def look(self, selector: Selector) -> Look:
        """The answer by a selector; the same again is not computed again."""
        if selector not in self._looks:
            self._looks[selector] = self._look(selector)
        return self._looks[selector]

    def _look(self, selector: Selector) -> Look:
        prefill = fused_prefill(self.model, self.prompt, self.store, selector)
        ended = self.task.ended(self.tokenizer)
        ids = decode(self.model, prefill, max_new_tokens=self.max_new_tokens, ended=ended).ids
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        seconds = {stage: prefill.timings.get(stage, 0.0) for stage in STAGES[:-1]}
        seconds["compute"] = prefill.timings["total"] - sum(seconds.values())
        scores = self.task.scores(text, self.item.answers, self.item.classes)
        return Look(selector, text, scores, prefill.selected, seconds)


class Looks:
    """Makes subjects of a profile's prompts and of one's own text; the latest models and subjects are kept.

    Keys and values lie in a temporary folder that goes with this object.

    Parameters
    ----------
    profile
        Its benchmarks, device and dtype, and how documents are cut.
    root
        What the profile's paths are relative to.
    """

    def __init__(self, profile: Profile, root: str | Path = "."):
        self.profile, self.root = profile, Path(root)
        self._folder = TemporaryDirectory(prefix="ragkv-")
        self._store = KVStore(self._folder.name)
        self._load = lru_cache(maxsize=2)(self._loaded)
        self._kept = lru_cache(maxsize=16)(self._made)

    def subject(self, model: str, source: Source, chunk_tokens: int | None = None) -> Subject:
        """A prompt in a model, cut into chunks of that many tokens (None: as the profile says).

        Raises
        ------
        ValueError, FileNotFoundError
            The model is unknown, or the source gives no prompt that it can read; the message says why.
        StoreError
            The temporary folder cannot be written to.
        """
        return self._kept(model, source, chunk_tokens or self.profile.chunk_tokens)

    def _loaded(self, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        return load_model(name, device=self.profile.device, dtype=self.profile.dtype)

    def _made(self, name: str, source: Source, chunk_tokens: int) -> Subject:
        model, tokenizer = self._load(name)
        cut = self.profile.model_copy(update={"chunk_tokens": chunk_tokens})
        return Subject(model, tokenizer, *source.item(cut, tokenizer, self.root), self._store)
