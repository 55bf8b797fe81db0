"""The HTTP layer: middleware of vLLM's OpenAI-compatible server (its option ``--middleware``).

Completions and chats with ``documents`` become requests with token ids and the lengths of their parts; vLLM's own route
answers them. ``POST /ragkv/documents`` stores documents, ``GET /ragkv/health`` tells how the worker is.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

from ragkv.serving.chat import ChatAnswer, Send
from ragkv.serving.messages import Message, encode
from ragkv.serving.requests import Requests, named_parts
from ragkv.serving.settings import VARIABLE, Settings

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
_TIMEOUT = 10.0  # seconds that the worker has to tell its status
_LONGEST_MESSAGE = 1 << 26  # bytes of an answer of the worker


class Middleware:
    """An ASGI application around vLLM's."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]):
        self._app = app
        self._settings = Settings.from_json(os.environ[VARIABLE])
        self._requests = Requests(self._settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = (scope.get("method"), scope.get("path"))
        try:
            if route == ("POST", "/v1/completions"):
                await self._complete(scope, receive, send)
            elif route == ("POST", "/v1/chat/completions"):
                await self._chat(scope, receive, send)
            elif route == ("POST", "/ragkv/documents") and await self._admits(scope, send):
                await _respond(send, 200, await self._add(_parsed(await _body(receive))))
            elif route == ("GET", "/ragkv/health"):
                await self._health(send)
            elif route != ("POST", "/ragkv/documents"):
                await self._app(scope, receive, send)
        except ValueError as error:
            await _respond(send, 400, _error(str(error), "BadRequestError", 400))

    async def _complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = self._requests.completion(_parsed(await _body(receive)))
        await self._ask_vllm(request, scope, receive, send)

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = _parsed(await _body(receive))
        if "documents" in request:
            route = {"path": "/v1/completions", "raw_path": b"/v1/completions"}
            await self._ask_vllm(self._requests.chat(request), scope | route, receive, ChatAnswer(send).send)
        elif named_parts(request) is not None:
            raise ValueError("a chat cannot name its parts: send 'documents', or a prompt to /v1/completions")
        else:
            await self._ask_vllm(request, scope, receive, send)

    async def _ask_vllm(self, request: Message, scope: Scope, receive: Receive, send: Send) -> None:
        """Have vLLM's own route answer a request."""
        body = json.dumps(request).encode()
        await self._app(_with_length(scope, body), _replayed(body, receive), send)

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
