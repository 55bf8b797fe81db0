"""Which requests of vLLM's scheduler are fused, and how far each of them has come."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from logging import Logger
from typing import Any, Protocol

from ragkv.serving.parts import KEY, Parts
from ragkv.serving.worker_client import Fused, Refused, WorkerClient


class Request(Protocol):
    """What is needed of vLLM's ``Request``."""

    request_id: str
    prompt_token_ids: list[int] | None
    kv_transfer_params: dict[str, Any] | None
    cache_salt: str | None
    lora_request: Any
    num_preemptions: int
    skip_reading_prefix_cache: bool


@dataclass
class Load:
    """Keys and values to copy: those of the tokens from `start` to `stop` of a prompt, into vLLM's blocks."""

    request: str
    fused: Fused
    start: int
    stop: int
    blocks: Sequence[int]


@dataclass
class Seen:
    """What happened since it was last asked for.

    Attributes
    ----------
    counts
        ``fused`` and ``fallen_back`` requests, ``segments`` that fused ones needed, and how many were ``reused``.
    seconds
        Of each fused prefill.
    """

    counts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


class Scheduling:
    """Decides about the requests that name their parts.

    Parameters
    ----------
    prefix_caching
        Whether vLLM keeps keys and values for later requests with the same tokens.
    """

    def __init__(self, client: WorkerClient, log: Logger, *, prefix_caching: bool):
        self._client = client
        self._log = log
        self._prefix_caching = prefix_caching
        self._refused: set[str] = set()
        self._loading: Counter[str] = Counter()  # steps that load a request and have not ended
        self._loads: list[Load] = []
        self._seen = Seen()

    def tokens(self, request: Request, computed: int) -> int | None:
        """How many tokens behind the first `computed` ones come from the worker; None if that is not known yet.

        All tokens but the last one do: from that one vLLM computes the first token of the answer.
        """
        name = request.request_id
        if KEY not in (request.kv_transfer_params or {}) or name in self._refused:
            return 0
        answer = self._answer(request, computed)
        if isinstance(answer, Refused):
            self._log.warning("request %s is prefilled by vLLM: %s", name, answer.reason)
            self._refused.add(name)
            self._seen.counts["fallen_back"] += 1
            return 0
        return None if answer is None else max(answer.tokens - 1 - computed, 0)

    def _answer(self, request: Request, computed: int) -> Fused | Refused | None:
        if problem := self._problem(request, computed):
            return Refused(problem)
        ids = request.prompt_token_ids or []
        params: Mapping[str, Any] = request.kv_transfer_params or {}
        try:
            parts = Parts.read(params, len(ids))
        except ValueError as error:
            return Refused(str(error))
        return self._client.ask(request.request_id, parts, ids)

    def _problem(self, request: Request, computed: int) -> str | None:
        """Why a request cannot be fused, whatever its parts are."""
        if not request.prompt_token_ids:
            return "it has embeddings instead of token ids"
        if request.lora_request is not None:
            return "it uses an adapter, which the worker does not have"
        if request.skip_reading_prefix_cache:
            return "it asks for results that need all of the prompt to be computed, such as prompt_logprobs"
        if self._prefix_caching and not request.cache_salt:
            return "without a cache_salt of its own, its keys and values could be mixed with those of other requests"
        if computed and not request.num_preemptions:
            return "its cache_salt was used before: vLLM has keys and values for the beginning of the prompt"
        return None

    def load(self, request: Request, blocks: Sequence[int], tokens: int) -> None:
        """vLLM has given the request these blocks, and expects that many tokens in the next step."""
        name = request.request_id
        fused = self._client.answer(name)
        stop = fused.tokens - 1
        self._loads.append(Load(name, fused, stop - tokens, stop, blocks))
        self._loading[name] += 1
        self._seen.counts.update(fused=1, segments=fused.segments, reused=fused.reused)
        self._seen.seconds.append(fused.seconds)

    def take_loads(self) -> list[Load]:
        """The loads of the next step."""
        loads, self._loads = self._loads, []
        return loads

    def loaded(self, names: set[str]) -> None:
        """A step has ended that these requests were loaded in."""
        for name in names:
            self._loading[name] -= 1
            if self._loading[name] <= 0:  # otherwise it was preempted, and a later step loads it again
                del self._loading[name]
                self._client.loaded(name)

    def finished(self, name: str) -> None:
        """A request has ended."""
        self._refused.discard(name)
        if name not in self._loading:  # otherwise its buffer is still being read
            self._client.forget(name)

    def take_seen(self) -> Seen:
        """What happened since the last call."""
        seen, self._seen = self._seen, Seen()
        return seen

    def close(self) -> None:
        """Let go of the worker, and of the buffers."""
        self._client.close()
