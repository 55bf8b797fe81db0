"""Chats with documents: vLLM answers them as completions, since only those take token ids.

`read_chat` makes a completion request of a chat request, and `ChatAnswer` makes a chat's answer of a completion's.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ragkv.prompt.templates import Turn
from ragkv.serving.messages import Message

Send = Callable[[Message], Awaitable[None]]
# Entries of a chat request that cannot be served with documents unless they have these values, which change nothing.
_NO_EFFECT: dict[str, Any] = {
    "tools": [],
    "functions": [],
    "logprobs": False,
    "top_logprobs": 0,
    "echo": False,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "chat_template": "",
    "chat_template_kwargs": {},
}
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Chat:
    """A chat request.

    Attributes
    ----------
    earlier
        The turns before the last one.
    question
        The text of the last one, which is the user's.
    rest
        The entries that a completion request has, too.
    """

    earlier: tuple[Turn, ...]
    question: str
    rest: Message


def read_chat(request: Message) -> Chat:
    """Read a chat request.

    Raises
    ------
    ValueError
        It asks for something that cannot be served with documents; the message says what.
    """
    for name, value in _NO_EFFECT.items():
        if request.get(name) not in (None, value):
            raise ValueError(f"{name!r} cannot be used in a chat with documents: leave it out")
    if "question" in request:
        raise ValueError("the question of a chat is its last message: leave 'question' out")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages' must be a list with at least one message")
    turns = [_turn(message, f"messages[{number}]") for number, message in enumerate(messages)]
    roles = [role for role, _ in turns]
    if "system" in roles[1:]:
        number = roles.index("system", 1)
        raise ValueError(f"'messages[{number}]' is a system message: only the first message can be one")
    if roles[-1] != "user":
        raise ValueError(f"the last message is of the role {roles[-1]!r}: it must be the user's, who asks the question")
    *earlier, (_, question) = turns
    if not question.strip():
        raise ValueError("the last message is empty: it must be the question")
    others = ("messages", "max_completion_tokens", *_NO_EFFECT)
    rest = {name: value for name, value in request.items() if name not in others}
    if (longest := request.get("max_completion_tokens")) is not None:
        rest["max_tokens"] = longest
    return Chat(tuple(earlier), question, rest)


def _turn(message: object, name: str) -> Turn:
    if not isinstance(message, dict):
        raise ValueError(f"{name!r} is a {type(message).__name__}: give an object with 'role' and 'content'")
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise ValueError(f"{name!r} has the role {role!r}: a chat with documents has the roles {', '.join(_ROLES)}")
    if message.get("tool_calls"):
        raise ValueError(f"{name!r} calls tools, which a chat with documents cannot")
    if isinstance(content, list):
        content = "\n".join(_text(part, name) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"{name!r} has no text: its 'content' must be a text or a list of texts")
    return role, content


def _text(part: object, name: str) -> str:
    """The text of one part of a message's content."""
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    text = part.get("text") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(text, str):
        raise ValueError(f"{name!r} has content of type {kind!r}: a chat with documents has only text")
    return text


class ChatAnswer:
    """Sends the answer to a completion request in the form of a chat's, streamed or whole. Errors stay as they are.

    Parameters
    ----------
    send
        Of the chat request.
    """

    def __init__(self, send: Send):
        self._send = send
        self._start: Message = {}
        self._received = b""  # what has not been sent yet
        self._streamed = False
        self._began = False  # whether a first event of the stream was sent

    async def send(self, message: Message) -> None:
        """Take one message of the completion's answer."""
        if message["type"] == "http.response.start":
            self._start = message
            self._streamed = any(
                name == b"content-type" and value.startswith(b"text/event-stream") for name, value in message["headers"]
            )
            if self._streamed or message["status"] != 200:
                await self._send(message)
        elif self._start["status"] != 200:
            await self._send(message)
        elif self._streamed:
            await self._send(message | {"body": self._events(message.get("body", b""))})
        else:
            self._received += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_whole()

    async def _send_whole(self) -> None:
        body = json.dumps(_as_chat(json.loads(self._received), "message", {"role": "assistant"})).encode()
        headers = [(name, value) for name, value in self._start["headers"] if name != b"content-length"]
        await self._send(self._start | {"headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body})

    def _events(self, body: bytes) -> bytes:
        """The events of the stream that are complete."""
        *events, self._received = (self._received + body).split(b"\n\n")
        return b"".join(self._event(event) + b"\n\n" for event in events)

    def _event(self, event: bytes) -> bytes:
        if not event.startswith(b"data: {"):
            return event  # [DONE]
        role = {} if self._began else {"role": "assistant"}
        self._began = True
        chat = _as_chat(json.loads(event.removeprefix(b"data: ")), "delta", role)
        return b"data: " + json.dumps(chat).encode()


def _as_chat(completion: Message, entry: str, role: dict[str, str]) -> Message:
    """A completion, or one event of it, as a chat's, whose texts are in ``"message"`` or in ``"delta"``."""
    if "choices" not in completion:
        return completion  # an error in the middle of a stream
    choices = [
        {name: value for name, value in choice.items() if name != "text"} | {entry: role | {"content": choice["text"]}}
        for choice in completion["choices"]
    ]
    kind = "chat.completion" if entry == "message" else "chat.completion.chunk"
    return completion | {"id": f"chat{completion['id']}", "object": kind, "choices": choices}
