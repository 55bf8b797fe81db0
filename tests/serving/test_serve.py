"""`ragkv serve`, asked through the OpenAI client."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress

import pytest
from helpers import ROOT

from ragkv import KVStore, Rag
from ragkv.selectors import get_selector

pytest.importorskip("vllm", reason="vLLM is not installed here: `make serving` runs these tests")
openai = pytest.importorskip("openai")

DOCUMENTS = [
    "Late the cook wrote VAR PIGA 414. Today the baker sold the old boat.",
    "Then the poet wrote VAR REDA PIGA. Soon the monk lost the red coat.",
    "Once the judge keeps KEY Bagaville 170. Today the smith saw the tall tower.",
]
QUESTION = "Find VAR REDA?"
OPTIONS = {"documents": DOCUMENTS, "question": QUESTION, "ratio": 0.33}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of a server of tiny-llama, and its log."""
    folder = tmp_path_factory.mktemp("serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", folder / "log"
    vllm_options = ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--api-key", "secret"]
    command = [sys.executable, "-m", "ragkv", "serve", "tiny-llama", "--store", str(folder / "kv"), "--tokens", "2048"]
    with log.open("w") as file:
        process = subprocess.Popen([*command, "--", *vllm_options], stdout=file, stderr=file, cwd=ROOT)
    try:
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"{url}/health") as response:
                assert response.status == 200
                break
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        yield url, log
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="secret", max_retries=0)


def fetch(url: str, content: object = None, key: str = "secret") -> tuple[int, str]:
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, body, {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def counter(url: str, name: str) -> float:
    lines = fetch(f"{url}/metrics")[1].splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:ragkv_{name}_total"))


def test_documents_and_a_question_get_ragkvs_own_answer_as_a_stream(server, client, tmp_path):
    before = counter(server[0], "fused")
    stream = client.completions.create(
        model="tiny-llama", prompt="", max_tokens=16, temperature=0, stream=True, extra_body=OPTIONS
    )
    pieces = [event.choices[0].text for event in stream if event.choices]
    rag = Rag(None, "tiny-llama", store=KVStore(tmp_path / "own"), selector=get_selector("a3", ratio=0.33))
    assert "".join(pieces).strip() == rag.ask(QUESTION, chunks=DOCUMENTS, max_new_tokens=16).text == "VAR REDA 414"
    assert len(pieces) > 1
    time.sleep(1)  # metrics arrive after answers
    assert counter(server[0], "fused") == before + 1


def test_the_server_answers_other_requests_as_ever(client):
    completion = client.completions.create(model="tiny-llama", prompt="Today the", max_tokens=4, temperature=0)
    assert completion.choices[0].text
    chat = [{"role": "user", "content": "Find VAR REDA?"}]
    answer = client.chat.completions.create(model="tiny-llama", messages=chat, max_tokens=4, temperature=0)
    assert answer.choices[0].message.content is not None


def test_parts_that_do_not_add_up_get_a_400_that_says_so(client):
    parts = {"ragkv": {"prefix": 1, "chunks": [3], "question": 1}}
    with pytest.raises(openai.BadRequestError, match="= 5 tokens, and the prompt has 6"):
        client.completions.create(
            model="tiny-llama", prompt=[1, 10, 11, 12, 13, 14], max_tokens=4, extra_body={"kv_transfer_params": parts}
        )


def test_documents_that_were_added_are_found(server, client):
    url = server[0]
    documents = [text.replace("Late", "Early") for text in DOCUMENTS]
    status, answer = fetch(f"{url}/ragkv/documents", {"documents": documents})
    assert status == 200, answer
    chunks = json.loads(answer)["chunks"]
    assert chunks == documents
    time.sleep(1)
    before = [counter(url, name) for name in ("segments", "reused")]
    client.completions.create(
        model="tiny-llama", prompt="", max_tokens=4, extra_body=OPTIONS | {"documents": chunks[::-1]}
    )
    time.sleep(1)
    after = [counter(url, name) for name in ("segments", "reused")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [4, 4]


def test_clients_without_the_key_are_refused(server):
    for path, content in (("/ragkv/documents", {"documents": ["a"]}), ("/v1/completions", {"prompt": "a"})):
        assert fetch(server[0] + path, content, key="other")[0] == 401


def test_the_health_tells_how_the_worker_is(server):
    status, answer = fetch(f"{server[0]}/ragkv/health")
    assert status == 200, answer
    assert json.loads(answer)["worker"]["waiting"] == 0
