"""The HTTP layer: middleware of vLLM's OpenAI-compatible server (its option ``--middleware``).

``POST /v1/completions`` with ``documents`` and ``question`` becomes a request with token ids and their parts; vLLM's
own route answers it. ``POST /ragkv/documents`` stores documents, ``GET /ragkv/health`` tells how the worker is.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from ragkv.serving.documents import make_prompt
from ragkv.serving.messages import Message, encode
from ragkv.serving.parts import KEY, Parts
from ragkv.serving.settings import VARIABLE, Settings

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_DOCUMENT_ENTRIES = ("documents", "question", "selector", "ratio")
_TIMEOUT = 10.0  # seconds that the worker has to tell its status
_LONGEST_MESSAGE = 1 << 26  # bytes of an answer of the worker


class Middleware:
    """An ASGI application around vLLM's."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]):
        self._app = app
        self._settings = Settings.from_json(os.environ[VARIABLE])
        self._tokenizer = self._settings.tokenizer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = (scope.get("method"), scope.get("path"))
        try:
            if route == ("POST", "/v1/completions"):
                body = self.completion(_parsed(await _body(receive)))
                await self._app(_with_length(scope, body), _replayed(body, receive), send)
            elif route == ("POST", "/v1/chat/completions"):
                body = await _body(receive)
                _refuse_chat(_parsed(body))
                await self._app(scope, _replayed(body, receive), send)
            elif route == ("POST", "/ragkv/documents") and await self._admits(scope, send):
                await _respond(send, 200, await self._add(_parsed(await _body(receive))))
            elif route == ("GET", "/ragkv/health"):
                await self._health(send)
            elif route != ("POST", "/ragkv/documents"):
                await self._app(scope, receive, send)
        except ValueError as error:
            await _respond(send, 400, _error(str(error), "BadRequestError", 400))

    def completion(self, request: Message) -> bytes:
        """The body of a completion request as vLLM takes it.

        Raises
        ------
        ValueError
            The request's documents or its parts are not right.
        """
        if "documents" in request:
            request = self._from_documents(request)
        elif "question" in request:
            raise ValueError("'question' comes with 'documents'")
        params = request.get("kv_transfer_params")
        if isinstance(params, dict) and KEY in params:
            Parts.read(params, _tokens(request.get("prompt")))
            for entry in ("n", "best_of"):
                if request.get(entry) not in (None, 1):
                    raise ValueError(f"{entry!r} is {request[entry]}: a fused prompt gets one answer per request")
            # Fused keys and values depend on more than the tokens before: no other request may find them.
            request = request | {"cache_salt": uuid4().hex}
        return json.dumps(request).encode()

    def _from_documents(self, request: Message) -> Message:
        if "kv_transfer_params" in request:
            raise ValueError("give 'documents' and 'question', or a prompt and 'kv_transfer_params', not both")
        question: Any = request.get("question", request.get("prompt"))
        prompt = make_prompt(self._tokenizer, self._settings.instruction, request["documents"], question)
        selector = request.get("selector", self._settings.selector)
        options = dict(self._settings.options) if selector == self._settings.selector else {}
        if "ratio" in request:
            options["ratio"] = request["ratio"]
        rest = {name: value for name, value in request.items() if name not in _DOCUMENT_ENTRIES}
        params = Parts.of(prompt, selector, **options).params()
        return rest | {"prompt": list(prompt.ids), "add_special_tokens": False, "kv_transfer_params": params}

    async def _admits(self, scope: Scope, send: Send) -> bool:
        """Whether vLLM lets this client in (its ``--api-key``); if not, the client gets vLLM's own answer.

        This layer is outside of vLLM's authentication, so it asks for something harmless with the client's headers.
        """
        answer: list[Message] = []

        async def nothing() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def keep(message: Message) -> None:
            answer.append(message)

        probe = {"method": "GET", "path": "/v1/models", "raw_path": b"/v1/models", "query_string": b""}
        await self._app(_with_length(scope | probe, b""), nothing, keep)
        if answer[0]["status"] == 200:
            return True
        for message in answer:
            await send(message)
        return False

    async def _add(self, request: Message) -> Message:
        """Store documents; the answer has the texts of their chunks."""
        documents, tokens = request.get("documents"), request.get("chunk_tokens", 256)
        if not isinstance(documents, list) or not all(isinstance(text, str) for text in documents) or not documents:
            raise ValueError("'documents' must be a list of texts, with at least one")
        if not isinstance(tokens, int) or tokens < 1:
            raise ValueError(f"'chunk_tokens' is {tokens!r}: give a number of tokens")
        answer = await self._ask("add", job=0, documents=documents, chunk_tokens=tokens)
        if answer["type"] == "failed":
            raise ValueError(answer["reason"])
        return {"chunks": answer["chunks"], "computed": answer["computed"]}

    async def _health(self, send: Send) -> None:
        try:
            status = await asyncio.wait_for(self._ask("status"), _TIMEOUT)
        except (OSError, TimeoutError) as error:
            await _respond(send, 503, {"worker": f"not reachable ({type(error).__name__}): vLLM prefills by itself"})
            return
        status.pop("type")
        await _respond(send, 200, {"worker": status})

    async def _ask(self, kind: str, **entries: object) -> Message:
        """The worker's answer to one message."""
        reader, writer = await asyncio.open_unix_connection(self._settings.address, limit=_LONGEST_MESSAGE)
        try:
            writer.write(encode(kind, **entries))
            line = await reader.readline()
            if not line:
                raise ConnectionError("the worker closed the connection")
            return json.loads(line)
        finally:
            writer.close()


def _tokens(prompt: object) -> int:
    """The number of tokens of a prompt whose parts are named."""
    if not isinstance(prompt, list) or not all(isinstance(token, int) for token in prompt):
        raise ValueError("a prompt whose parts are named must be a list of token ids, as parts are counted in tokens")
    return len(prompt)


def _refuse_chat(request: Message) -> None:
    params = request.get("kv_transfer_params")
    if isinstance(params, dict) and KEY in params:
        raise ValueError("a chat has no token ids: send documents and a question to /v1/completions")


def _parsed(body: bytes) -> Message:
    try:
        request = json.loads(body)
    except ValueError as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise ValueError("the body is not a JSON object")
    return request


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` for an application that has not read the body yet; afterwards it tells of a disconnection."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _with_length(scope: Scope, body: bytes) -> Scope:
    others = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    return scope | {"headers": [*others, (b"content-length", str(len(body)).encode())]}


async def _respond(send: Send, status: int, content: Message) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})


def _error(message: str, kind: str, code: int) -> Message:
    """An error in the form of vLLM's own."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
