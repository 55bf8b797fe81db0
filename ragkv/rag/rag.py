"""Questions answered from documents: chunks retrieved by BM25, fused from a store, and an answer decoded."""

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
from ragkv.models.checks import check_model, check_room
from ragkv.models.load import load_model
from ragkv.prompt import Prompt
from ragkv.prompt.chunking import By
from ragkv.prompt.documents import Chunk, Documents, chunk_documents, read_documents
from ragkv.prompt.similar import best_first, bm25, words
from ragkv.prompt.templates import chat_parts, next_turn
from ragkv.rag.conversation import Answer, go_on
from ragkv.selectors import Selector, get_selector
from ragkv.store import KVStore, Layout
from ragkv.store.precompute import Precomputed, precompute

Model = str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase]
OnToken = Callable[[str], object]
INSTRUCTION = "Read the notes below.\n"


class Rag:
    """Documents to ask questions about. Each chunk is computed once: by `precompute`, or by the first that needs it.

    Parameters
    ----------
    documents
        A list of texts, or a folder of .txt and .md files, see `ragkv.prompt.documents.read_documents`.
    model
        An embedded model's name, a local folder or a hub id; or a model and its tokenizer, already loaded.
    store
        Where keys and values are kept: a KVStore or its folder. None is a temporary folder, removed with this object.
    selector
        What is recomputed: a selector or the name of one, see `ragkv.selectors`.
    instruction
        What stands before the chunks in every prompt.
    chunk_tokens, chunk_by
        How documents are cut, see `ragkv.prompt.chunking`.
    max_new_tokens
        The longest answer.

    Raises
    ------
    ValueError
        No documents, something that is not text, an unknown model or selector.
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
        read = read_documents(documents)
        self.selector = get_selector(selector) if isinstance(selector, str) else selector
        self.model, self.tokenizer = _loaded(model)
        self.instruction, self.max_new_tokens = instruction, max_new_tokens
        self.chunks = chunk_documents(self.tokenizer, read, by=chunk_by, tokens=chunk_tokens)
        self._scores = bm25(words([chunk.text for chunk in self.chunks]))
        if store is None:
            store = tempfile.mkdtemp(prefix="ragkv-")
            finalize(self, shutil.rmtree, store, ignore_errors=True)
        self.store = store if isinstance(store, KVStore) else KVStore(str(store))

    def precompute(self, *, progress: bool = False) -> Precomputed:
        """Store every chunk's keys and values, with a progress bar if wanted; damaged files are mended.

        Raises
        ------
        StoreError
            The store cannot be written to.
        """
        alone = [self._prompt("?", chunk) for chunk in self.chunks]
        return precompute(self.model, alone, self.store, progress=progress)

    def retrieve(self, question: str, k: int | None = 4) -> list[int]:
        """Indices of the `k` chunks most like the question by BM25 over words, best first; None for all chunks."""
        if k is not None and k < 1:
            raise ValueError(f"k is {k}: retrieve at least one chunk")
        return best_first(self._scores(words([question])[0]))[:k]

    def ask(self, question: str, k: int | None = 4, *, on_token: OnToken | None = None) -> Answer:
        """Answer from the `k` chunks most like the question. In the prompt they stand in the documents' order.

        Parameters
        ----------
        on_token
            Called with the answer's text as it comes, a word or more at a time.

        Raises
        ------
        ValueError
            The question is empty, or prompt and answer have more tokens than the model has positions.
        """
        clock, hit_rate = Clock(), None
        with clock("retrieve"):
            best = self.retrieve(check_question(question), k)
            order = sorted(best)
            chunks = tuple(self.chunks[i] for i in order)
            prompt = self._prompt(question, *chunks)
        less = f"retrieve fewer than {len(chunks)} chunks (k)" if len(chunks) > 1 else "ask a shorter question"
        check_room(self.model, prompt, self.max_new_tokens, f"{less}, or cut smaller chunks (chunk_tokens)")
        if self.selector.reuses:
            with clock("precompute"):
                hit_rate = self._fill(prompt)
        with clock("prefill"):
            prefill = fused_prefill(self.model, prompt, self.store, self.selector)
        retrieved = tuple(map(order.index, best))
        said = self._decode(prefill, on_token)
        return Answer(question, chunks, retrieved, prompt, hit_rate, clock.seconds(), **said)

    def follow_up(self, answer: Answer, question: str, *, on_token: OnToken | None = None) -> Answer:
        """Ask on in the conversation that `answer` ends: over its cache; nothing is retrieved or prefilled anew.

        Parameters and errors are those of `ask`.
        """
        clock = Clock()
        with clock("prefill"):
            ids = next_turn(self.tokenizer, check_question(question))
            prompt = replace(answer.prompt, question=(*answer.prompt.question, *answer.generation.ids, *ids))
            check_room(self.model, prompt, self.max_new_tokens, "begin a new conversation")
            prefill = go_on(self.model, answer.prefill, answer.generation, ids)
        said = self._decode(prefill, on_token)
        return replace(answer, question=question, prompt=prompt, hit_rate=None, seconds=clock.seconds(), **said)

    def in_full(self, answer: Answer) -> Answer:
        """The same prompt answered from a full prefill. Reuse saved ``in_full(answer).ttft - answer.ttft`` seconds."""
        clock = Clock()
        with clock("prefill"):
            prefill = fused_prefill(self.model, answer.prompt, None, get_selector("full_prefill"))
        seconds = {"retrieve": answer.seconds.get("retrieve", 0.0), **clock.seconds()}
        return replace(answer, hit_rate=None, seconds=seconds, **self._decode(prefill, None))

    def _prompt(self, question: str, *chunks: Chunk) -> Prompt:
        prefix, asked = chat_parts(self.tokenizer, self.instruction, f"\n{question}")
        return Prompt(prefix, [chunk.ids for chunk in chunks], asked)

    def _fill(self, prompt: Prompt) -> float:
        """Compute what the store does not have; the share of segments that it had."""
        needed = set(prompt.segments(self.model.config.bos_token_id))
        missing = self.store.missing(Layout.of(self.model, self.store.format), list(needed))
        if missing:
            precompute(self.model, [prompt], self.store)
        return 1 - len(missing) / len(needed)

    def _decode(self, prefill: Prefill, on_token: OnToken | None) -> dict[str, Any]:
        with text_stream(self.tokenizer, on_token) as put:
            generation = decode(self.model, prefill, max_new_tokens=self.max_new_tokens, on_token=put)
        text = self.tokenizer.decode(generation.ids, skip_special_tokens=True)
        return {"text": text, "prefill": prefill, "generation": generation}


def check_question(question: str) -> str:
    """The question, if it is one."""
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"the question is {question!r}: ask something, as text")
    return question


def _loaded(model: Model) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if isinstance(model, str | Path):
        return load_model(model)
    if not (isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], PreTrainedModel)):
        raise ValueError(f"the model is of type {type(model).__name__}: give a name, a folder, or (model, tokenizer)")
    check_model(model[0])
    return model
