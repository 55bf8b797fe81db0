"""Questions answered from documents: retrieve chunks by BM25, fuse them from a store, and decode an answer."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import finalize

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.fusion.clock import Clock
from ragkv.fusion.decoding import decode, text_stream
from ragkv.fusion.prefill import Prefill, fused_prefill
from ragkv.models.checks import check_model, check_room, check_tokenizer
from ragkv.models.load import load_model
from ragkv.prompt import Prompt
from ragkv.prompt.chunking import By
from ragkv.prompt.documents import Chunk, Documents, chunk_documents, read_documents
from ragkv.prompt.similar import best_first, bm25, words
from ragkv.prompt.templates import chat_parts, next_turn
from ragkv.rag.conversation import Answer, extend
from ragkv.selectors import Selector, get_selector
from ragkv.store import KVStore, Layout
from ragkv.store.precompute import Precomputed, precompute

Model = str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase]
OnToken = Callable[[str], object]
INSTRUCTION = "Read the notes below.\n"


class Rag:
    """Documents to ask questions about.

    Each chunk is computed once: by `precompute`, or by the first question that needs it.

    Parameters
    ----------
    documents
        A list of texts, or a folder of .txt and .md files, see `ragkv.prompt.documents.read_documents`.
    model
        The name of an embedded model, a local folder or a hub id; or a model and its tokenizer, already loaded.
    store
        A KVStore or its folder, which keeps keys and values. None uses a temporary folder that is removed with this
        object.
    selector
        What to recompute: a selector or the name of one, see `ragkv.selectors`.
    instruction
        The text before the chunks in every prompt.
    chunk_tokens, chunk_by
        How documents are cut, see `ragkv.prompt.chunking`.
    max_new_tokens
        The maximum length of an answer.

    Raises
    ------
    ValueError
        There are no documents, something is not text, or the model or selector is unknown.
    """

    def __init__(
        self,
        documents: Documents,
        model: Model = "tiny-llama",
        *,
        store: KVStore | str | Path | None = None,
        selector: Selector | str = "a3",
        instruction: str = INSTRUCTION,
        chunk_tokens: int = 256,
        chunk_by: By = "paragraphs",
        max_new_tokens: int = 64,
    ):
        texts = read_documents(documents)
        self.selector = get_selector(selector) if isinstance(selector, str) else selector
        self.model, self.tokenizer = _load(model)
        self.instruction = instruction
        self.max_new_tokens = max_new_tokens
        self.chunks = chunk_documents(self.tokenizer, texts, by=chunk_by, tokens=chunk_tokens)
        self._scores = bm25(words([chunk.text for chunk in self.chunks]))
        if store is None:
            store = tempfile.mkdtemp(prefix="ragkv-")
            finalize(self, shutil.rmtree, store, ignore_errors=True)
        self.store = store if isinstance(store, KVStore) else KVStore(str(store))

    def precompute(self, *, progress: bool = False) -> Precomputed:
        """Store the keys and values of every chunk. Damaged files are rewritten.

        Parameters
        ----------
        progress
            Whether to show a progress bar.

        Raises
        ------
        StoreError
            The store cannot be written to.
        """
        prompts = [self._prompt("?", chunk) for chunk in self.chunks]  # the question is not part of what is stored
        return precompute(self.model, prompts, self.store, progress=progress)

    def retrieve(self, question: str, k: int | None = 4) -> list[int]:
        """Indices of the `k` chunks that match the question best by BM25 over words, the best first.

        Parameters
        ----------
        k
            The number of chunks; None returns all of them.
        """
        if k is not None and k < 1:
            raise ValueError(f"k is {k}: retrieve at least one chunk")
        return best_first(self._scores(words([question])[0]))[:k]

    def ask(self, question: str, k: int | None = 4, *, on_token: OnToken | None = None) -> Answer:
        """Answer from the `k` chunks that match the question best. The prompt keeps them in the documents' order.

        Parameters
        ----------
        k
            The number of chunks to retrieve; None gives the model all of them.
        on_token
            Called with the text of the answer as it is generated, one or more whole words at a time.

        Raises
        ------
        ValueError
            The question is empty, or prompt and answer have more tokens than the model has positions.
        """
        clock = Clock()
        with clock("retrieve"):
            ranked = self.retrieve(check_question(question), k)
            order = sorted(ranked)
            chunks = tuple(self.chunks[index] for index in order)
            prompt = self._prompt(question, *chunks)
        shorten = f"retrieve fewer than {len(chunks)} chunks (k)" if len(chunks) > 1 else "ask a shorter question"
        check_room(self.model, prompt, self.max_new_tokens, f"{shorten}, or cut smaller chunks (chunk_tokens)")
        hit_rate = None
        if self.selector.reuses:
            with clock("precompute"):
                hit_rate = self._compute_missing(prompt)
        with clock("prefill"):
            prefill = fused_prefill(self.model, prompt, self.store, self.selector)
        retrieved = tuple(order.index(index) for index in ranked)
        decoded = self._decode(prefill, on_token)
        return Answer(question, chunks, retrieved, prompt, hit_rate, clock.seconds(), **decoded)

    def follow_up(self, answer: Answer, question: str, *, on_token: OnToken | None = None) -> Answer:
        """Ask the next question of the conversation that `answer` ends.

        The answer's cache is reused: nothing is retrieved, and only the new tokens are computed. Parameters and errors
        are those of `ask`.
        """
        clock = Clock()
        with clock("prefill"):
            ids = next_turn(self.tokenizer, check_question(question))
            prompt = replace(answer.prompt, question=(*answer.prompt.question, *answer.generation.ids, *ids))
            check_room(self.model, prompt, self.max_new_tokens, "begin a new conversation")
            prefill = extend(self.model, answer.prefill, answer.generation, ids)
        decoded = self._decode(prefill, on_token)
        return replace(answer, question=question, prompt=prompt, hit_rate=None, seconds=clock.seconds(), **decoded)

    def in_full(self, answer: Answer) -> Answer:
        """Answer the same prompt from a full prefill, for comparison.

        Reuse saved ``in_full(answer).ttft - answer.ttft`` seconds.
        """
        clock = Clock()
        with clock("prefill"):
            prefill = fused_prefill(self.model, answer.prompt, None, get_selector("full_prefill"))
        seconds = {"retrieve": answer.seconds.get("retrieve", 0.0), **clock.seconds()}
        return replace(answer, hit_rate=None, seconds=seconds, **self._decode(prefill, None))

    def _prompt(self, question: str, *chunks: Chunk) -> Prompt:
        prefix, after = chat_parts(self.tokenizer, self.instruction, f"\n{question}")
        return Prompt(prefix, [chunk.ids for chunk in chunks], after)

    def _compute_missing(self, prompt: Prompt) -> float:
        """Compute the segments that are not stored, and return the share that was."""
        needed = set(prompt.segments(self.model.config.bos_token_id))
        missing = self.store.missing(Layout.of(self.model, self.store.format), list(needed))
        if missing:
            precompute(self.model, [prompt], self.store)
        return 1 - len(missing) / len(needed)

    def _decode(self, prefill: Prefill, on_token: OnToken | None) -> dict[str, Any]:
        """The fields of an `Answer` that come from decoding."""
        with text_stream(self.tokenizer, on_token) as stream:
            generation = decode(self.model, prefill, max_new_tokens=self.max_new_tokens, on_token=stream)
        text = self.tokenizer.decode(generation.ids, skip_special_tokens=True)
        return {"text": text, "prefill": prefill, "generation": generation}


def answer(
    question: str,
    documents: Documents,
    *,
    model: Model = "tiny-llama",
    store: KVStore | str | Path | None = None,
    selector: Selector | str = "a3",
    k: int | None = None,
    on_token: OnToken | None = None,
    **options: Any,
) -> Answer:
    """Answer one question from documents: ``answer(question, texts).text``.

    Parameters
    ----------
    k
        The number of chunks to retrieve; None gives the model all of them.
    on_token
        As in `Rag.ask`.
    documents, model, store, selector, options
        As in `Rag`.

    Raises
    ------
    ValueError
        As `Rag` and `Rag.ask`.
    """
    check_question(question)  # before a model is loaded
    rag = Rag(documents, model, store=store, selector=selector, **options)
    return rag.ask(question, k, on_token=on_token)


def check_question(question: str) -> str:
    """Return the question, or refuse one that is empty or not text."""
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"the question is {question!r}: ask something, as text")
    return question


def _load(model: Model) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if isinstance(model, str | Path):
        return load_model(model)
    if not (isinstance(model, tuple) and len(model) == 2):
        raise ValueError(f"the model is of type {type(model).__name__}: give a name, a folder, or (model, tokenizer)")
    check_model(model[0])
    check_tokenizer(model[1])
    return model
