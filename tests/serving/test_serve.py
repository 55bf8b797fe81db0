"""`ragkv serve`, asked through the OpenAI client."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import ROOT

from ragkv import KVStore, Prompt, Rag, decode, fused_prefill, load_model, precompute
from ragkv.models.load import load_tokenizer
from ragkv.rag.rag import INSTRUCTION
from ragkv.selectors import get_selector
from ragkv.serving.documents import make_prompt, split_prompt

pytest.importorskip("vllm", reason="vLLM is not installed here: `make serving` runs these tests")
openai = pytest.importorskip("openai")
psutil = pytest.importorskip("psutil")

DOCUMENTS = [
    "Late the cook wrote VAR PIGA 414. Today the baker sold the old boat.",
    "Then the poet wrote VAR REDA PIGA. Soon the monk lost the red coat.",
    "Once the judge keeps KEY Bagaville 170. Today the smith saw the tall tower.",
]
QUESTION = "Find VAR REDA?"
OPTIONS = {"documents": DOCUMENTS, "question": QUESTION, "ratio": 0.33}


@dataclass
class Server:
    """A process of `ragkv serve`, its URL and its log."""

    process: subprocess.Popen
    url: str
    log: Path

    def wait_until_ready(self) -> None:
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/health") as response:
                assert response.status == 200
                return
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.5)
        raise AssertionError(f"not ready: {self.log.read_text()[-3000:]}")


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve tiny-llama."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    vllm_options = ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--api-key", "secret"]
    command = [sys.executable, "-m", "ragkv", "serve", "tiny-llama", "--store", str(folder / "kv"), "--tokens", "2048"]
    with (folder / "log").open("w") as file:
        process = subprocess.Popen([*command, "--", *vllm_options], stdout=file, stderr=file, cwd=ROOT)
    try:
        yield Server(process, f"http://127.0.0.1:{port}", folder / "log")
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("serve")) as server:
        server.wait_until_ready()
        yield server


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0)


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
    before = counter(server.url, "fused")
    stream = client.completions.create(
        model="tiny-llama", prompt="", max_tokens=16, temperature=0, stream=True, extra_body=OPTIONS
    )
    pieces = [event.choices[0].text for event in stream if event.choices]
    rag = Rag(None, "tiny-llama", store=KVStore(tmp_path / "own"), selector=get_selector("a3", ratio=0.33))
    assert "".join(pieces).strip() == rag.ask(QUESTION, chunks=DOCUMENTS, max_new_tokens=16).text == "VAR REDA 414"
    assert len(pieces) > 1
    time.sleep(1)  # metrics arrive after answers
    assert counter(server.url, "fused") == before + 1


def own_answer(prompt: Prompt) -> str:
    """Ragkv's own answer to a prompt."""
    model, tokenizer = load_model("tiny-llama", device="cpu", dtype="float32")
    store = KVStore("memory://own")
    precompute(model, [prompt], store)
    prefill = fused_prefill(model, prompt, store, get_selector("a3", ratio=0.33))
    return tokenizer.decode(decode(model, prefill, max_new_tokens=16).ids, skip_special_tokens=True)


CONVERSATION = [
    {"role": "user", "content": "Find VAR PIGA?"},
    {"role": "assistant", "content": "VAR PIGA 414"},
    {"role": "user", "content": QUESTION},
]


@pytest.mark.parametrize("messages", [CONVERSATION[-1:], CONVERSATION], ids=["one turn", "three turns"])
def test_a_chat_with_documents_gets_ragkvs_own_answer_streamed_or_not(server, client, messages):
    before = counter(server.url, "fused")
    options = {"model": "tiny-llama", "messages": messages, "temperature": 0}
    extra = {"documents": DOCUMENTS, "ratio": 0.33}
    whole = client.chat.completions.create(**options, max_completion_tokens=16, extra_body=extra)
    events = list(client.chat.completions.create(**options, max_tokens=16, stream=True, extra_body=extra))
    pieces = [event.choices[0].delta.content for event in events if event.choices]

    earlier = [(message["role"], message["content"]) for message in messages[:-1]]
    prompt = make_prompt(load_tokenizer("tiny-llama"), INSTRUCTION, DOCUMENTS, QUESTION, earlier)
    assert whole.choices[0].message.content.strip() == "".join(pieces).strip() == own_answer(prompt).strip()
    assert whole.choices[0].finish_reason == events[-1].choices[0].finish_reason
    assert whole.usage.prompt_tokens == len(prompt.ids)
    assert len(pieces) > 1
    time.sleep(1)  # metrics arrive after answers
    assert counter(server.url, "fused") == before + 2


def test_a_chats_answer_may_take_all_positions_unless_it_says_otherwise(client):
    tokenizer, documents = load_tokenizer("tiny-llama"), list(DOCUMENTS)
    while len(make_prompt(tokenizer, INSTRUCTION, documents, QUESTION).ids) < 1950:
        documents += DOCUMENTS
    options = {"model": "tiny-llama", "messages": [{"role": "user", "content": QUESTION}]}
    extra = {"documents": documents, "ignore_eos": True}
    whole = client.chat.completions.create(**options, extra_body=extra)
    *_, last = client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}, extra_body=extra
    )
    assert whole.usage.total_tokens == last.usage.total_tokens == 2048


def test_what_a_chat_with_documents_cannot_have_gets_a_400_that_says_so(client):
    chat = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    with pytest.raises(openai.BadRequestError, match="has content of type 'image_url'"):
        client.chat.completions.create(model="tiny-llama", messages=chat, extra_body={"documents": DOCUMENTS})


def test_a_text_with_a_marker_gets_ragkvs_own_answer(server, client):
    text = "<|user|> Read the notes.\n##" + "##".join(DOCUMENTS) + f"##\n{QUESTION}<|assistant|>"
    entry = {"ragkv": {"marker": "##", "options": {"ratio": 0.33}}}
    before = counter(server.url, "fused")
    answer = client.completions.create(
        model="tiny-llama", prompt=text, max_tokens=16, temperature=0, extra_body={"kv_transfer_params": entry}
    )
    prompt = split_prompt(load_tokenizer("tiny-llama"), text, "##")
    assert answer.choices[0].text.strip() == own_answer(prompt).strip()
    time.sleep(1)
    assert counter(server.url, "fused") == before + 1


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
    url = server.url
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
        assert fetch(server.url + path, content, key="other")[0] == 401


def test_the_health_tells_how_the_worker_is(server):
    status, answer = fetch(f"{server.url}/ragkv/health")
    assert status == 200, answer
    assert json.loads(answer)["worker"]["waiting"] == 0


@pytest.mark.parametrize("ready", [True, False], ids=["serving", "starting"])
def test_all_processes_end_when_ragkv_serve_is_killed(tmp_path, ready):
    with serving(tmp_path) as server:
        if ready:
            server.wait_until_ready()
        else:
            until_there_are_engines(server)
        family = psutil.Process(server.process.pid).children(recursive=True)
        assert len(family) >= 3  # the worker, vLLM's server, and its engine
        server.process.kill()
        until = time.monotonic() + 60
        while alive := [process for process in family if is_alive(process)]:
            if time.monotonic() > until:
                for process in alive:
                    process.kill()
                raise AssertionError(f"still there: {alive}\n{server.log.read_text()[-3000:]}")
            time.sleep(0.1)


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def until_there_are_engines(server: Server) -> None:
    """Wait until vLLM's server has started processes of its own."""
    while not any(child.children() for child in psutil.Process(server.process.pid).children()):
        assert server.process.poll() is None, server.log.read_text()[-3000:]
        time.sleep(0.1)
