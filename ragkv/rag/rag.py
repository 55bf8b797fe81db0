"""Questions answered from documents: retrieve chunks, fuse them from a store, and decode an answer."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import finalize

from tqdm import tqdm

from ragkv.contexts import LearnedContext
from ragkv.fusion.clock import Clock
from ragkv.fusion.decoding import decode, text_stream
from ragkv.fusion.prefill import Prefill, fused_prefill
from ragkv.fusion.sampling import Sampling
from ragkv.models.checks import check_room
from ragkv.prompt import Prompt
from ragkv.prompt.chunking import By
from ragkv.prompt.documents import Chunk, Documents, chunk_documents, read_documents
from ragkv.prompt.templates import chat_parts, next_turn
from ragkv.rag.chunk_context import ChunkContext
from ragkv.rag.conversation import Answer, extend
from ragkv.rag.inputs import Model, check_question, load, warn_of_unknown_text
from ragkv.rag.retrieval import Retriever, VectorStore, as_chunk, as_retriever, by_words, in_order
from ragkv.selectors import Selector, get_selector
from ragkv.store import KVStore, Layout
from ragkv.store.precompute import Precomputed, precompute

OnToken = Callable[[str], object]
INSTRUCTION = "Read the notes below.\n"


class Rag:
    """Documents to ask questions about.

    Each chunk is computed once: by `precompute`, or by the first question that needs it.

    Parameters
    ----------
    documents
        A list of texts, or a folder of text, HTML and PDF files, see `ragkv.prompt.documents.read_documents`; None if
        each question comes with its chunks.
    model
        ``smollm2``, the name of an embedded model, a local folder or a hub id; or a model and its tokenizer, already
        loaded.
    store
        A KVStore or its folder, which keeps keys and values. None uses a temporary folder that is removed with this
        object.
    selector
        What to recompute: a selector or the name of one, see `ragkv.selectors`.
    retriever
        Finds the chunks for a question: a function of (question, k) that returns indices of `Rag.chunks`, or texts,
        the best first; or a vector store with ``similarity_search``. None ranks the documents' chunks by BM25.
    context
        A learned context that chunks are computed behind: ``"learned"`` for the one that comes with ragkv for this
        model, the path of a file, or a `ragkv.contexts.LearnedContext`. None computes them behind BOS alone.
    behind_prefix
        Compute chunks behind the prompt's prefix, too, which is the same for every question.
    instruction
        The text before the chunks in every prompt.
    chunk_tokens, chunk_by
        How documents are cut, see `ragkv.prompt.chunking`.
    max_new_tokens
        The maximum length of an answer. One that reaches it is cut off, and its `finish_reason` is ``length``.
    sampling
        Draw tokens at random (`ragkv.fusion.sampling.Sampling`); None takes the likeliest one each time.

    Warns
    -----
    UserWarning
        The tokenizer does not know much of the documents' text: a model for another language.

    Raises
    ------
    ValueError
        There are no documents, something is not text, the model or selector is unknown, or the learned context does
        not exist or is another model's.
    """

    def __init__(
        self,
        documents: Documents | None,
        model: Model,
        *,
        store: KVStore | str | Path | None = None,
        selector: Selector | str = "a3",
        retriever: Retriever | VectorStore | None = None,
        context: LearnedContext | str | Path | None = None,
        behind_prefix: bool = False,
        instruction: str = INSTRUCTION,
        chunk_tokens: int = 256,
        chunk_by: By = "paragraphs",
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
    ):
        texts = [] if documents is None else read_documents(documents)
        self.selector = get_selector(selector) if isinstance(selector, str) else selector
        self.model, self.tokenizer = load(model)
        self.chunk_context = ChunkContext.find(self.model, context, behind_prefix)
        self.instruction = instruction
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling
        self.chunks = chunk_documents(self.tokenizer, texts, by=chunk_by, tokens=chunk_tokens)
        warn_of_unknown_text(self.tokenizer, self.chunks)
        self.retriever = by_words(self.chunks) if retriever is None else as_retriever(retriever)
        if store is None:
            store = tempfile.mkdtemp(prefix="ragkv-")
            finalize(self, shutil.rmtree, store, ignore_errors=True)
        self.store = store if isinstance(store, KVStore) else KVStore(str(store))

    def __repr__(self) -> str:
        documents = len({chunk.document for chunk in self.chunks})
        name = self.model.config.name_or_path or self.model.config.model_type
        dtype = str(self.model.dtype).removeprefix("torch.")
        return (
            f"Rag({documents} documents, {len(self.chunks)} chunks, {self.selector}, "
            f"{name} in {dtype} on {self.model.device}, {self.store.url!r})"
        )

    @property
    def bytes_to_store(self) -> float:
        """About how many bytes the keys and values of all chunks take in the store."""
        tokens = sum(len(chunk.ids) for chunk in self.chunks)
        return tokens * Layout.of(self.model, self.store.format).bytes_per_token

    def precompute(self, *, progress: bool = False) -> Precomputed:
        """Store the keys and values of every chunk. Damaged files are rewritten.

        Parameters
        ----------
        progress
            Whether to say how much this will store, and to show a progress bar.

        Raises
        ------
        StoreError
            The store cannot be written to.
        """
        if progress:
            size = f"{len(self.chunks)} chunks, about {self.bytes_to_store / 1e9:.2g} GB to store"
            smaller = "; less with store=KVStore(folder, format='fp8')" if self.store.format == "model" else ""
            tqdm.write(size + smaller)
        prompts = [self._prompt("?", chunk) for chunk in self.chunks]  # the question is not part of what is stored
        return precompute(self.model, prompts, self.store, progress=progress)

    def retrieve(self, question: str, k: int | None = 4) -> list[Chunk]:
        """The `k` chunks that the retriever finds for the question, the best first.

        Parameters
        ----------
        k
            The number of chunks; None asks for as many as the documents have.

        Raises
        ------
        ValueError
            The retriever gave no chunk, or something that is neither an index of a chunk nor text.
        """
        if k is not None and k < 1:
            raise ValueError(f"k is {k}: retrieve at least one chunk")
        found = list(self.retriever(question, k or max(len(self.chunks), 1)))[:k]
        if not found:
            raise ValueError("the retriever found no chunk: give documents, or ask(question, chunks=[text, ...])")
        return [as_chunk(item, self.chunks, self.tokenizer) for item in found]

    def ask(
        self,
        question: str,
        k: int | None = 4,
        *,
        chunks: Sequence[str | Chunk] | None = None,
        max_new_tokens: int | None = None,
        on_token: OnToken | None = None,
    ) -> Answer:
        """Answer from the `k` chunks that the retriever finds, or from the chunks that are given.

        The prompt keeps chunks of the documents in the documents' order, and others in the order in which they come.

        Parameters
        ----------
        k
            The number of chunks to retrieve; None gives the model all of them.
        chunks
            Texts to answer from, in the prompt's order. Nothing is retrieved then.
        max_new_tokens
            The maximum length of this answer; None takes that of this object.
        on_token
            Called with the text of the answer as it is generated, one or more whole words at a time.

        Raises
        ------
        ValueError
            The question is empty, there is no chunk, or prompt and answer have more tokens than the model has
            positions.
        """
        longest = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        clock = Clock()
        with clock("retrieve"):
            check_question(question)
            if chunks is None:
                ranked = self.retrieve(question, k)
                placed = in_order(ranked, self.chunks)
            else:
                ranked = placed = [as_chunk(item, (), self.tokenizer) for item in chunks]
            prompt = self._prompt(question, *placed)
        shorten = f"retrieve fewer than {len(placed)} chunks (k)" if len(placed) > 1 else "ask a shorter question"
        check_room(self.model, len(prompt.ids), longest, f"{shorten}, or cut smaller chunks (chunk_tokens)")
        hit_rate = None
        if self.selector.reuses:
            with clock("precompute"):
                hit_rate = self._compute_missing(prompt)
        with clock("prefill"):
            prefill = fused_prefill(self.model, prompt, self.store, self.selector)
        retrieved = tuple(placed.index(chunk) for chunk in ranked)
        decoded = self._decode(prefill, longest, on_token)
        return Answer(question, tuple(placed), retrieved, prompt, hit_rate, clock.seconds(), **decoded)

    def follow_up(
        self,
        answer: Answer,
        question: str,
        *,
        max_new_tokens: int | None = None,
        on_token: OnToken | None = None,
    ) -> Answer:
        """Ask the next question of the conversation that `answer` ends.

        The answer's cache is reused: nothing is retrieved, and only the new tokens are computed. Parameters and errors
        are those of `ask`.
        """
        longest = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        clock = Clock()
        with clock("prefill"):
            ids = next_turn(self.tokenizer, check_question(question))
            prompt = replace(answer.prompt, question=(*answer.prompt.question, *answer.generation.ids, *ids))
            check_room(self.model, len(prompt.ids), longest, "begin a new conversation")
            prefill = extend(self.model, answer.prefill, answer.generation, ids)
        decoded = self._decode(prefill, longest, on_token)
        return replace(answer, question=question, prompt=prompt, hit_rate=None, seconds=clock.seconds(), **decoded)

    def in_full(self, answer: Answer) -> Answer:
        """Answer the same prompt from a full prefill, for comparison.

        Reuse saved ``in_full(answer).ttft - answer.ttft`` seconds.
        """
        clock = Clock()
        with clock("prefill"):
            prefill = fused_prefill(self.model, answer.prompt, None, get_selector("full_prefill"))
        seconds = {"retrieve": answer.seconds.get("retrieve", 0.0), **clock.seconds()}
        return replace(answer, hit_rate=None, seconds=seconds, **self._decode(prefill, self.max_new_tokens, None))

    def _prompt(self, question: str, *chunks: Chunk) -> Prompt:
        prefix, after = chat_parts(self.tokenizer, self.instruction, f"\n{question}")
        return self.chunk_context(Prompt(prefix, [chunk.ids for chunk in chunks], after))

    def _compute_missing(self, prompt: Prompt) -> float:
        """Compute the segments that are not stored, and return the share that was."""
        needed = set(prompt.segments(self.model.config.bos_token_id))
        missing = self.store.missing(Layout.of(self.model, self.store.format), list(needed))
        if missing:
            precompute(self.model, [prompt], self.store)
        return 1 - len(missing) / len(needed)

    def _decode(self, prefill: Prefill, max_new_tokens: int, on_token: OnToken | None) -> dict[str, Any]:
        """The fields of an `Answer` that come from decoding."""
        with text_stream(self.tokenizer, on_token) as stream:
            generation = decode(
                self.model, prefill, max_new_tokens=max_new_tokens, on_token=stream, sampling=self.sampling
            )
        text = self.tokenizer.decode(generation.ids, skip_special_tokens=True)
        return {"text": text, "prefill": prefill, "generation": generation}
