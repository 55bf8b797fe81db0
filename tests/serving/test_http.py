"""The HTTP layer around an application that stands for vLLM's and shows what reaches it."""

import asyncio
import json

import pytest

from ragkv.prompt.documents import whole_chunk
from ragkv.serving.documents import make_prompt
from ragkv.serving.http import Middleware
from ragkv.serving.settings import VARIABLE

DOCUMENTS = ["Late the cook wrote VAR PIGA 414.", "Then the poet wrote VAR REDA PIGA."]


class Behind:
    """Answers with the request's body; refuses clients without a key if it has one."""

    def __init__(self, key: str | None = None):
        self.key = key

    async def __call__(self, scope, receive, send):
        status = 401 if self.key and (b"authorization", self.key.encode()) not in scope["headers"] else 200
        body = (await receive())["body"]
        assert dict(scope["headers"]).get(b"content-length", b"0") == str(len(body)).encode()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})


def request(app, method: str, path: str, content: object = None, headers: tuple = ()) -> tuple[int, dict]:
    """The status and the body of an answer. The request's body comes in two pieces."""
    body = b"" if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
    pieces = [
        {"type": "http.request", "body": body[:5], "more_body": True},
        {"type": "http.request", "body": body[5:], "more_body": False},
    ]
    answer = []

    async def receive():
        return pieces.pop(0)

    async def send(message):
        answer.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(b"content-length", str(len(body)).encode()), *headers],
    }
    asyncio.run(app(scope, receive, send))
    return answer[0]["status"], json.loads(answer[1]["body"] or b"{}")


@pytest.fixture
def app(settings, monkeypatch):
    monkeypatch.setenv(VARIABLE, settings.to_json())
    return Middleware(Behind())


def test_documents_and_a_question_become_token_ids_and_parts(app, settings):
    content = {"model": "m", "documents": DOCUMENTS, "question": "Find VAR REDA?", "ratio": 0.5, "stream": True}
    status, seen = request(app, "POST", "/v1/completions", content)
    prompt = make_prompt(settings.tokenizer(), settings.instruction, DOCUMENTS, "Find VAR REDA?")
    assert status == 200
    assert tuple(seen["prompt"]) == prompt.ids
    assert prompt.chunks == tuple(whole_chunk(settings.tokenizer(), text).ids for text in DOCUMENTS)
    entry = seen["kv_transfer_params"]["ragkv"]
    assert entry["chunks"] == [len(chunk) for chunk in prompt.chunks]
    assert (entry["selector"], entry["options"]) == ("a3", {"ratio": 0.5})
    assert seen["stream"] is True
    assert not {"documents", "question", "ratio"} & seen.keys()


def test_every_fused_request_has_a_salt_of_its_own(app):
    content = {"documents": DOCUMENTS, "question": "Find VAR REDA?", "cache_salt": "mine"}
    salts = [request(app, "POST", "/v1/completions", content)[1]["cache_salt"] for _ in range(2)]
    assert len({*salts, "mine"}) == 3


def test_other_requests_pass_as_they_are(app):
    content = {"prompt": "Once upon a time", "max_tokens": 3}
    assert request(app, "POST", "/v1/completions", content) == (200, content)
    content = {"messages": [{"role": "user", "content": "Hello"}]}
    assert request(app, "POST", "/v1/chat/completions", content) == (200, content)
    assert request(app, "GET", "/health") == (200, {})


PARTS = {"prefix": 1, "chunks": [2], "question": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "the body is not JSON"),
        ([], "not a JSON object"),
        ({"documents": [], "question": "Why?"}, "'documents' must be a list of texts"),
        ({"documents": ["a", " "], "question": "Why?"}, "'documents[1]' must be a text"),
        ({"documents": ["a"]}, "'question' must be a text"),
        ({"question": "Why?", "prompt": "a"}, "'question' comes with 'documents'"),
        ({"documents": ["a"], "question": "Why?", "ratio": 7}, "ratio is 7"),
        ({"documents": ["a"], "question": "Why?", "selector": "b"}, "unknown selector 'b'"),
        ({"documents": ["a"], "question": "Why?", "n": 2}, "'n' is 2"),
        ({"documents": ["a"], "question": "Why?", "kv_transfer_params": {}}, "not both"),
        ({"prompt": [1, 2, 3], "kv_transfer_params": {"ragkv": PARTS}}, "= 4 tokens, and the prompt has 3"),
        ({"prompt": "abc", "kv_transfer_params": {"ragkv": PARTS}}, "must be a list of token ids"),
    ],
)
def test_what_is_not_right_gets_a_400_that_says_so(app, content, message):
    status, answer = request(app, "POST", "/v1/completions", content)
    assert status == 400
    assert message in answer["error"]["message"]


CHAT = {"messages": [{"role": "user", "content": "Find VAR REDA?"}], "documents": DOCUMENTS}


def test_a_chat_with_documents_is_answered_as_a_completion(settings, monkeypatch):
    async def completions(scope, receive, send):
        assert (scope["path"], scope["raw_path"]) == ("/v1/completions", b"/v1/completions")
        request = json.loads((await receive())["body"])
        body = {"id": "cmpl-1", "choices": [{"index": 0, "text": f"{len(request['prompt'])} tokens"}]}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    monkeypatch.setenv(VARIABLE, settings.to_json())
    status, answer = request(Middleware(completions), "POST", "/v1/chat/completions", CHAT)
    prompt = make_prompt(settings.tokenizer(), settings.instruction, DOCUMENTS, "Find VAR REDA?")
    assert status == 200
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": f"{len(prompt.ids)} tokens"}


def test_a_chat_with_documents_that_is_not_right_gets_a_400_that_says_so(app):
    status, answer = request(app, "POST", "/v1/chat/completions", CHAT | {"tools": [{"type": "function"}]})
    assert status == 400
    assert "'tools' cannot be used in a chat with documents" in answer["error"]["message"]


def test_a_chat_cannot_name_parts(app):
    status, answer = request(app, "POST", "/v1/chat/completions", {"kv_transfer_params": {"ragkv": PARTS}})
    assert status == 400
    assert "/v1/completions" in answer["error"]["message"]


def test_documents_are_stored_and_the_health_counts_them(app, worker):
    status, answer = request(app, "POST", "/ragkv/documents", {"documents": DOCUMENTS, "chunk_tokens": 8})
    assert status == 200
    assert answer["computed"] == len(answer["chunks"]) + 1  # the prefix, too
    assert " ".join(" ".join(answer["chunks"]).split()) == " ".join(DOCUMENTS)
    assert request(app, "POST", "/ragkv/documents", {"documents": DOCUMENTS, "chunk_tokens": 8})[1]["computed"] == 0
    status, health = request(app, "GET", "/ragkv/health")
    assert (status, health["worker"]["add"]) == (200, 2)


def test_documents_that_are_not_right_are_refused(app, worker):
    for content in ({}, {"documents": "a"}, {"documents": ["a"], "chunk_tokens": 0}, {"documents": [" "]}):
        assert request(app, "POST", "/ragkv/documents", content)[0] == 400


def test_without_a_worker_the_health_says_so(app):
    status, health = request(app, "GET", "/ragkv/health")
    assert status == 503
    assert "vLLM prefills by itself" in health["worker"]


def test_documents_are_only_stored_for_clients_that_vllm_lets_in(settings, worker, monkeypatch):
    monkeypatch.setenv(VARIABLE, settings.to_json())
    app = Middleware(Behind(key="Bearer secret"))
    content = {"documents": DOCUMENTS}
    assert request(app, "POST", "/ragkv/documents", content)[0] == 401
    assert request(app, "POST", "/ragkv/documents", content, ((b"authorization", b"Bearer secret"),))[0] == 200
