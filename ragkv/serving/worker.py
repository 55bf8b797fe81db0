"""The worker: a process with the model in ragkv, which writes fused keys and values into the engine's buffers.

One thread computes; one per connection reads messages into a queue of bounded length.
"""

import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Full, Queue
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer
from threading import Event, Lock, Thread
from time import perf_counter

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.fusion.prefill import Prefill, fused_prefill
from ragkv.fusion.workspace import Workspace
from ragkv.models.load import load_model
from ragkv.prompt import Prompt
from ragkv.rag.chunk_context import ChunkContext
from ragkv.selectors import Selector
from ragkv.serving.buffers import KVShape
from ragkv.serving.children import end_with_parent
from ragkv.serving.documents import store_documents
from ragkv.serving.identity import identity
from ragkv.serving.mapped import MappedBuffers
from ragkv.serving.messages import PROTOCOL, Message, encode
from ragkv.serving.parts import Parts
from ragkv.serving.pinned import CudaPinning, wait_for_copies
from ragkv.serving.settings import Settings
from ragkv.store import KVStore, Layout, StoreError
from ragkv.store.precompute import precompute


@dataclass(frozen=True)
class Job:
    """A message that takes time to answer.

    Attributes
    ----------
    reply
        Sends an answer to where it came from.
    gone
        Set when nobody is there any more.
    """

    message: Message
    reply: Callable[..., None]
    gone: Event


class Worker:
    """Computes fused prefills of one model, one after the other."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Settings):
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.store = KVStore(settings.store, format=settings.format)
        self.chunk_context = ChunkContext.find(model, settings.context, settings.behind_prefix)
        self.identity = identity(settings.model, model.config, model.dtype)
        self._layout = Layout.of(model, self.store.format)
        shape = KVShape(self._layout.layers, self._layout.kv_heads, self._layout.head_dim, model.dtype)
        self._buffers = MappedBuffers(shape, CudaPinning() if model.device.type == "cuda" else None)
        self._workspace = Workspace.if_faster(model, settings.tokens)
        self._jobs: Queue[Job] = Queue(settings.queue)
        self._cancelled: set[tuple[Event, int]] = set()
        self._finished: Counter[str] = Counter()

    def run(self) -> None:
        """Listen for connections and compute, until the process ends."""
        Path(self.settings.address).unlink(missing_ok=True)
        with _Server(self.settings.address, self.receive) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            while True:
                self._answer(self._jobs.get())

    def receive(self, job: Job) -> None:
        """Answer a message, or put it into the queue. The threads of the connections call this."""
        message, kind = job.message, job.message["type"]
        if kind == "hello":
            problem = self._mismatch(message)
            job.reply("refused", reason=problem) if problem else job.reply("welcome")
        elif kind == "status":
            job.reply("status", pid=os.getpid(), waiting=self._jobs.qsize(), identity=self.identity, **self._finished)
        elif kind == "cancel":
            self._cancelled.add((job.gone, message["job"]))
        else:
            try:
                self._jobs.put_nowait(job)
            except Full:
                job.reply("failed", job=message["job"], reason=f"the worker's queue of {self._jobs.maxsize} is full")

    def _mismatch(self, hello: Message) -> str | None:
        """Why an engine cannot use this worker, if it cannot."""
        if hello["protocol"] != PROTOCOL:
            return f"the worker speaks protocol {PROTOCOL}, the engine {hello['protocol']}: use one version of ragkv"
        if hello["identity"] != self.identity:
            return (
                f"the worker has another model ({self.identity[:12]}) than the engine ({hello['identity'][:12]}): "
                "start both with the same files, configuration and dtype"
            )
        return None

    def _answer(self, job: Job) -> None:
        number, kind = job.message["job"], job.message["type"]
        cancelled = (job.gone, number)
        try:
            if job.gone.is_set() or cancelled in self._cancelled:
                raise ValueError("the request was cancelled")
            answer = self._add(job.message) if kind == "add" else self._prefill(job.message)
            self._finished[kind] += 1  # before the answer, after which a client may ask for the status
            job.reply(job=number, **answer)
        except Exception as error:  # whatever is wrong with a request, the next one is served
            if not isinstance(error, (ValueError, StoreError)):
                traceback.print_exc()
            self._finished["failed"] += 1
            job.reply("failed", job=number, reason=f"{type(error).__name__}: {error}")
        self._cancelled.discard(cancelled)

    def _prefill(self, message: Message) -> Message:
        """Compute a fused prefill into the buffer that the message names."""
        start = perf_counter()
        parts = Parts.read(message["parts"], len(message["ids"]))
        self._buffers.reserve(message["buffer"], parts.tokens)
        prompt = self.chunk_context(parts.prompt(message["ids"]))
        selector = parts.make_selector()
        segments = set(prompt.segments(self.model.config.bos_token_id)) if selector.reuses else set()
        missing = self.store.missing(self._layout, list(segments))
        if missing:
            precompute(self.model, [prompt], self.store)
        prefill = self._fused(prompt, selector)
        memory = self._buffers.keys_and_values(message["buffer"], prefill.tokens)
        layers = prefill.cache.layers
        for (keys, values), layer in zip(memory, layers, strict=True):
            keys.copy_(layer.keys[0].transpose(0, 1), non_blocking=True)
            values.copy_(layer.values[0].transpose(0, 1), non_blocking=True)
        wait_for_copies({layer.keys.device for layer in layers})
        return {
            "kind": "done",
            "segments": len(segments),
            "reused": len(segments) - len(missing),
            "seconds": perf_counter() - start,
        }

    def _fused(self, prompt: Prompt, selector: Selector) -> Prefill:
        try:
            return fused_prefill(self.model, prompt, self.store, selector, workspace=self._workspace)
        except StoreError:  # a damaged file, or one that has just been evicted: it is written again
            precompute(self.model, [prompt], self.store)
            return fused_prefill(self.model, prompt, self.store, selector, workspace=self._workspace)

    def _add(self, message: Message) -> Message:
        """Cut documents into chunks and store their keys and values."""
        chunks, stored = store_documents(
            message["documents"],
            self.model,
            self.tokenizer,
            self.store,
            self.chunk_context,
            instruction=self.settings.instruction,
            chunk_tokens=message["chunk_tokens"],
        )
        return {"kind": "added", "chunks": [chunk.text for chunk in chunks], "computed": stored.written}


class _Server(ThreadingUnixStreamServer):
    """Accepts connections, each of which gets a thread."""

    daemon_threads = True

    def __init__(self, address: str, receive: Callable[[Job], None]):
        super().__init__(address, _Handler)
        self.receive = receive


class _Handler(StreamRequestHandler):
    """One connection."""

    server: _Server

    def handle(self) -> None:
        lock, gone = Lock(), Event()

        def reply(kind: str, **entries: object) -> None:
            try:
                with lock:
                    self.wfile.write(encode(kind, **entries))
            except (OSError, ValueError):  # ValueError: the file is closed
                gone.set()

        try:
            for line in self.rfile:
                self.server.receive(Job(json.loads(line), reply, gone))
        except (OSError, ValueError, KeyError) as error:
            print(f"closing a connection: {type(error).__name__}: {error}", file=sys.stderr)
        finally:
            gone.set()


def main(settings: Settings) -> None:
    """Load the model and serve it until the process ends."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    Worker(*load_model(settings.model, dtype=settings.dtype), settings).run()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent gets it, too, and ends this process
    end_with_parent(int(sys.argv[1]))
    main(Settings.from_json(sys.argv[2]))
