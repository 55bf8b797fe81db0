"""What a chat request says, and answers in the form of a chat's."""

import asyncio
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkv.serving.chat import ChatAnswer, read_chat

USER = {"role": "user", "content": "Why?"}
SYSTEM = {"role": "system", "content": "Be short."}


def test_a_chat_is_its_last_question_behind_earlier_turns():
    messages = [SYSTEM, USER, {"role": "assistant", "content": "So."}, {"role": "user", "content": "And now?"}]
    chat = read_chat({"model": "m", "messages": messages, "documents": ["a"], "tools": None, "max_tokens": 7})
    assert chat.earlier == (("system", "Be short."), ("user", "Why?"), ("assistant", "So."))
    assert chat.question == "And now?"
    assert chat.rest == {"model": "m", "documents": ["a"], "max_tokens": 7}


def test_texts_in_parts_are_lines():
    parts = [{"type": "text", "text": "Why?"}, {"type": "text", "text": "When?"}]
    assert read_chat({"messages": [{"role": "user", "content": parts}]}).question == "Why?\nWhen?"


def test_the_newer_name_of_the_longest_answer_is_known():
    assert read_chat({"messages": [USER], "max_completion_tokens": 5}).rest == {"max_tokens": 5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "'messages' must be a list"),
        ({"messages": []}, "'messages' must be a list"),
        ({"messages": ["Why?"]}, "'messages[0]' is a str"),
        ({"messages": [USER, {"role": "tool", "content": "4"}]}, "'messages[1]' has the role 'tool'"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}, USER]}, "'messages[1]' calls tools"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content of type 'image_url'"),
        ({"messages": [{"role": "user", "content": ["Why?"]}]}, "content of type 'str'"),
        ({"messages": [{"role": "user"}]}, "'messages[0]' has no text"),
        ({"messages": [SYSTEM, USER, SYSTEM, USER]}, "'messages[2]' is a system message"),
        ({"messages": [USER, {"role": "assistant", "content": "So."}]}, "the last message is of the role 'assistant'"),
        ({"messages": [{"role": "user", "content": " "}]}, "the last message is empty"),
        ({"messages": [USER], "question": "Why?"}, "leave 'question' out"),
        ({"messages": [USER], "tools": [{"type": "function"}]}, "'tools' cannot be used"),
        ({"messages": [USER], "logprobs": True}, "'logprobs' cannot be used"),
        ({"messages": [USER], "add_generation_prompt": False}, "'add_generation_prompt' cannot be used"),
    ],
)
def test_what_cannot_be_served_with_documents_is_refused(content, message):
    with pytest.raises(ValueError) as error:
        read_chat(content)
    assert message in str(error.value)


def sent(status: int, kind: str, pieces: list[bytes]) -> tuple[dict, list[dict]]:
    """The start and the pieces of a chat's answer to which a completion was answered with these pieces."""
    messages = []

    async def keep(message: dict) -> None:
        messages.append(message)

    async def answer() -> None:
        chat = ChatAnswer(keep)
        headers = [(b"content-type", kind.encode()), (b"content-length", b"1")]
        await chat.send({"type": "http.response.start", "status": status, "headers": headers})
        for number, piece in enumerate(pieces, 1):
            await chat.send({"type": "http.response.body", "body": piece, "more_body": number < len(pieces)})

    asyncio.run(answer())
    return messages[0], messages[1:]


def completion(text: str, reason: str | None = None) -> dict:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason, "stop_reason": None}
    return {"id": "cmpl-1", "object": "text_completion", "created": 5, "model": "m", "choices": [choice]}


def test_a_whole_answer_becomes_a_message():
    body = json.dumps(completion(" red", "stop") | {"usage": {"total_tokens": 9}}).encode()
    start, pieces = sent(200, "application/json", [body[:30], body[30:]])
    (answer,) = [json.loads(piece["body"]) for piece in pieces]
    assert dict(start["headers"])[b"content-length"] == str(len(pieces[0]["body"])).encode()
    assert (answer["id"], answer["object"]) == ("chatcmpl-1", "chat.completion")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": " red"}
    assert choice["finish_reason"] == "stop"
    assert "text" not in choice
    assert answer["usage"] == {"total_tokens": 9}


@given(st.lists(st.integers(0, 2000)))
def test_a_stream_becomes_the_events_of_a_chat_wherever_it_is_cut(cuts):
    texts = ["The ", "boat is\n\n", "r\N{LATIN SMALL LETTER E WITH ACUTE}d", ""]
    events = [json.dumps(completion(text, None if text else "stop"), ensure_ascii=False) for text in texts]
    events += [json.dumps(completion("") | {"choices": [], "usage": {"total_tokens": 9}}), "[DONE]"]
    stream = "".join(f"data: {event}\n\n" for event in events).encode()
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[start:stop] for start, stop in pairwise(edges)]

    _, messages = sent(200, "text/event-stream; charset=utf-8", pieces)
    lines = b"".join(message["body"] for message in messages).decode().removesuffix("\n\n").split("\n\n")
    *chunks, usage = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert lines[-1] == "data: [DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta["content"] for delta in deltas] == texts
    assert [delta.get("role") for delta in deltas] == ["assistant", None, None, None]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]) == ([], {"total_tokens": 9})
    assert messages[-1]["more_body"] is False


def test_errors_stay_as_they_are():
    body = b'{"error": {"message": "no such model"}}'
    start, pieces = sent(404, "application/json", [body])
    assert (start["status"], pieces[0]["body"]) == (404, body)
    event = b"data: " + body + b"\n\n"
    assert sent(200, "text/event-stream", [event])[1][0]["body"] == event
