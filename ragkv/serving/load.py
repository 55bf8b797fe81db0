"""A running server under load: fused prompts against vLLM's own prefill, and while the worker is killed.

All methods go to the same server in turns, so whatever else happens on the machine affects them alike. vLLM alone is a
request with a ``cache_salt`` of its own: nothing that was computed before fits it.
"""

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import typer
from transformers import PreTrainedTokenizerBase

from ragkv.prompt import Prompt
from ragkv.rag.rag import INSTRUCTION
from ragkv.serving.documents import make_prompt
from ragkv.serving.parts import Parts

VLLM, CACHING, FUSED = "vLLM", "vLLM with prefix caching", "fused"


@dataclass(frozen=True)
class Answered:
    """A request that was answered: its new token ids, and seconds from sending it to the first and the last of them."""

    ids: list[int]
    ttft: float
    total: float


class ServerClient:
    """Sends prompts to a server.

    Parameters
    ----------
    url
        Of the server, without ``/v1``.
    model
        Its name there.
    """

    def __init__(self, url: str, model: str, new_tokens: int, selector: str, options: dict[str, Any]):
        self._url = url
        self._new_tokens = new_tokens
        self._model = model
        self._selector = selector
        self._options = options

    def ask(self, prompt: Prompt, method: str) -> Answered:
        """One request, its answer streamed."""
        content: dict[str, Any] = {"model": self._model, "prompt": list(prompt.ids), "max_tokens": self._new_tokens}
        content |= {"temperature": 0, "ignore_eos": True, "stream": True, "return_token_ids": True}
        if method == FUSED:
            content["kv_transfer_params"] = Parts.of(prompt, self._selector, **self._options).params()
        if method == VLLM:
            content["cache_salt"] = uuid4().hex
        start = time.perf_counter()
        ids: list[int] = []
        first = 0.0
        for event in self._events(content):
            first = first or time.perf_counter() - start
            ids += event["choices"][0].get("token_ids") or []
        return Answered(ids, first, time.perf_counter() - start)

    def _events(self, content: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with self._open("/v1/completions", content) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))

    def add(self, documents: list[str]) -> None:
        """Store documents."""
        with self._open("/ragkv/documents", {"documents": documents}) as response:
            response.read()

    def counters(self) -> dict[str, float]:
        """The connector's counters."""
        with self._open("/metrics") as response:
            lines = response.read().decode().splitlines()
        found = [line.removeprefix("vllm:ragkv_").split() for line in lines if line.startswith("vllm:ragkv_")]
        return {words[0].partition("_total{")[0]: float(words[-1]) for words in found if "_total{" in words[0]}

    def worker(self) -> int:
        """The process id of the worker, on this machine."""
        with self._open("/ragkv/health") as response:
            return json.loads(response.read())["worker"]["pid"]

    def _open(self, path: str, content: object = None) -> Any:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._url + path, body, {"Content-Type": "application/json"})
        return urllib.request.urlopen(request)


def load_test(
    client: ServerClient, prompts: list[Prompt], concurrency: int, batch: int
) -> tuple[dict[str, list[Answered]], dict[str, float]]:
    """The answers by method, and the seconds that all batches of a method took."""
    methods = [VLLM, CACHING, FUSED]
    answers: dict[str, list[Answered]] = {method: [] for method in methods}
    seconds = dict.fromkeys(methods, 0.0)
    with ThreadPoolExecutor(concurrency) as pool:
        for number, start in enumerate(range(0, len(prompts), batch)):
            for method in methods[number % 3 :] + methods[: number % 3]:
                begin = time.perf_counter()
                results = pool.map(lambda prompt, method=method: client.ask(prompt, method), prompts[start:][:batch])
                answers[method] += results
                seconds[method] += time.perf_counter() - begin
                typer.echo(f"batch {number + 1}, {method}: {time.perf_counter() - begin:.1f} s")
    return answers, seconds


def kill_test(client: ServerClient, prompts: list[Prompt], concurrency: int, kills: int) -> tuple[list[Answered], int]:
    """Answers to fused requests while the worker is killed, and how often it was: each time as soon as it is back."""
    finished = Event()

    def kill() -> None:
        while not finished.wait(1.0) and len(killed) < kills:
            try:
                process = client.worker()
                os.kill(process, signal.SIGKILL)
            except (OSError, KeyError):  # it is just starting again
                continue
            killed.append(process)

    killed: list[int] = []
    killer = Thread(target=kill)
    killer.start()
    with ThreadPoolExecutor(concurrency) as pool:
        answers = list(pool.map(lambda prompt: client.ask(prompt, FUSED), prompts))
    finished.set()
    killer.join()
    return answers, len(killed)


def make_prompts(tokenizer: PreTrainedTokenizerBase, texts: list[str], tokens: int, number: int) -> list[Prompt]:
    """Prompts of up to that many tokens over the same texts, in new orders."""
    rng = Random(0)
    prompts = []
    for index in range(number):
        order = rng.sample(texts, len(texts))
        question = f"Question {index}: what do the notes say about {rng.choice(order[0].split())}?"
        most = 1
        while most < len(order) and len(make_prompt(tokenizer, INSTRUCTION, order[: most + 1], question).ids) <= tokens:
            most += 1
        prompts.append(make_prompt(tokenizer, INSTRUCTION, order[:most], question))
    return prompts
