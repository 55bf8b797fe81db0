"""The worker and the engine's side of it, without vLLM."""

import json
import os
import socket
import subprocess
import sys
import time
from fcntl import flock
from pathlib import Path
from random import Random
from threading import Thread

import pytest
import torch

from ragkv import KVStore, Prompt, fused_prefill, precompute
from ragkv.models.load import load_model, model_source
from ragkv.selectors import get_selector
from ragkv.serving.buffers import Buffers, KVShape
from ragkv.serving.identity import identity
from ragkv.serving.mapped import MappedBuffers
from ragkv.serving.messages import Connection
from ragkv.serving.parts import Parts
from ragkv.serving.worker_client import Fused, Refused, WorkerClient

SHAPE = KVShape(layers=8, kv_heads=4, head_dim=32, dtype=torch.float32)
TOKENS = 128


def make_prompt(seed: int, chunks: tuple[int, ...] = (20, 13, 30)) -> Prompt:
    rng = Random(seed)
    part = lambda length: [rng.randrange(3, 2000) for _ in range(length)]  # noqa: E731
    return Prompt([1, *part(4)], [part(length) for length in chunks], part(9))


def held(answer: Fused) -> torch.Tensor:
    """The keys and values in an answer's buffer."""
    return MappedBuffers(SHAPE).keys_and_values(answer.buffer, answer.tokens)


@pytest.fixture
def buffers():
    buffers = Buffers(2, SHAPE.numbers(TOKENS) * 4)
    yield buffers
    buffers.close()


@pytest.fixture
def client(settings, worker, buffers) -> WorkerClient:
    return WorkerClient(settings.address, worker.identity, buffers, timeout=60)


def wait(client: WorkerClient, name: str, prompt: Prompt, selector: str = "a3", **options: object) -> Fused | Refused:
    parts = Parts.of(prompt, selector, **options)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if answer := client.ask(name, parts, prompt.ids):
            return answer
        time.sleep(0.005)
    raise AssertionError("no answer")


@pytest.mark.parametrize(
    ("selector", "options"), [("a3", {"ratio": 0.2}), ("probe", {"ratio": 0.1}), ("full_prefill", {})]
)
def test_the_buffer_holds_what_a_fused_prefill_computes(client, tiny_llama, tmp_path, selector, options):
    prompt = make_prompt(1)
    answer = wait(client, "one", prompt, selector, **options)
    found = held(answer)
    store = KVStore(tmp_path / "other")
    precompute(tiny_llama[0], [prompt], store)
    expected = fused_prefill(tiny_llama[0], prompt, store, get_selector(selector, **options)).cache
    assert answer.tokens == len(prompt.ids)
    for layer, (keys, values) in zip(expected.layers, found, strict=True):
        torch.testing.assert_close(keys.transpose(0, 1)[None], layer.keys)
        torch.testing.assert_close(values.transpose(0, 1)[None], layer.values)


def test_segments_are_computed_once_and_a_damaged_file_is_replaced(client, settings):
    prompt = make_prompt(2)
    first = wait(client, "first", prompt)
    assert (first.segments, first.reused) == (4, 0)
    before = held(first).clone()
    client.loaded("first")
    again = wait(client, "again", prompt)
    assert (again.segments, again.reused) == (4, 4)
    client.loaded("again")
    for file in Path(settings.store).rglob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-9] ^= 1
        file.write_bytes(data)
    mended = wait(client, "mended", prompt)
    assert torch.equal(held(mended), before)


def test_requests_wait_for_a_buffer_and_all_are_answered(client, buffers):
    prompts = {str(seed): make_prompt(seed) for seed in range(6)}
    waiting, most = dict(prompts), 0
    while waiting:
        for name, prompt in list(waiting.items()):
            answer = client.ask(name, Parts.of(prompt, "full_reuse"), prompt.ids)
            most = max(most, buffers.lent)
            if answer is not None:
                assert isinstance(answer, Fused)
                client.loaded(name)
                del waiting[name]
    assert most == 2
    assert buffers.lent == 0


def test_no_more_requests_wait_than_the_queue_allows(settings, worker, buffers):
    client = WorkerClient(settings.address, worker.identity, buffers, queue=1)
    prompt = make_prompt(3)
    answers = [client.ask(str(number), Parts.of(prompt), prompt.ids) for number in range(4)]
    assert answers[:3] == [None, None, None]  # two have a buffer, one waits
    assert answers[3] == Refused("1 requests wait for the worker already")


def test_a_request_that_ends_early_gives_its_buffer_back(client, buffers):
    prompt = make_prompt(4)
    assert client.ask("early", Parts.of(prompt), prompt.ids) is None
    client.forget("early")
    assert isinstance(wait(client, "next", prompt), Fused)
    client.forget("next")
    assert buffers.lent == 0


def test_the_worker_refuses_what_it_cannot_compute_and_serves_the_next_request(client):
    too_high = Prompt([1], [[5000]], [3])
    answer = wait(client, "bad", too_high)
    assert isinstance(answer, Refused)
    assert "token id 5000 is outside the model's vocabulary" in answer.reason
    assert isinstance(wait(client, "good", make_prompt(5)), Fused)


def test_another_model_is_refused(settings, worker, buffers):
    other, _ = load_model("tiny-mistral", device="cpu")
    theirs = identity(model_source("tiny-mistral"), other.config, other.dtype)
    client = WorkerClient(settings.address, theirs, buffers)
    prompt = make_prompt(6)
    answer = client.ask("one", Parts.of(prompt), prompt.ids)
    assert isinstance(answer, Refused)
    assert "the worker has another model" in answer.reason


def test_a_model_in_another_dtype_or_with_another_rotary_embedding_has_another_identity(tiny_llama, settings):
    model, _ = tiny_llama
    own = identity(settings.model, model.config, torch.float32)
    assert own == identity(settings.model, load_model("tiny-llama", device="cpu")[0].config, torch.float32)
    assert own != identity(settings.model, model.config, torch.bfloat16)
    changed = load_model("tiny-llama", device="cpu")[0].config
    changed.rope_parameters = {"rope_type": "default", "rope_theta": 20_000.0}
    assert own != identity(settings.model, changed, torch.float32)


class FakeWorker:
    """Welcomes everybody, and answers nothing else by itself."""

    def __init__(self, address: str):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen()

    def accept(self) -> None:
        self.connection, _ = self.listener.accept()
        self.lines = self.connection.makefile("rb")
        assert json.loads(self.lines.readline())["type"] == "hello"

    def send(self, **message: object) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")


@pytest.fixture
def fake(settings):
    fake = FakeWorker(settings.address)

    def welcome() -> None:
        fake.accept()
        fake.send(type="welcome")

    thread = Thread(target=welcome, daemon=True)
    thread.start()
    return fake


def test_a_slow_worker_is_not_waited_for_and_keeps_its_buffers_until_it_answers(settings, fake, buffers):
    client = WorkerClient(settings.address, "model", buffers, timeout=0.05)
    prompt = make_prompt(7)
    for name in ("one", "two"):
        assert client.ask(name, Parts.of(prompt), prompt.ids) is None
    time.sleep(0.06)
    late = [client.ask(name, Parts.of(prompt), prompt.ids) for name in ("one", "two")]
    assert late == [Refused("the worker did not answer within 0.05 s")] * 2
    assert buffers.lent == 2  # the worker may still write to them
    answer = client.ask("three", Parts.of(prompt), prompt.ids)
    assert isinstance(answer, Refused)
    assert "too slow" in answer.reason
    jobs = [json.loads(fake.lines.readline())["job"] for _ in range(2)]
    fake.send(type="done", job=jobs[0], segments=1, reused=1, seconds=1.0)
    fake.send(type="failed", job=jobs[1], reason="cancelled")
    time.sleep(0.05)
    assert client.ask("four", Parts.of(prompt), prompt.ids) is None
    assert buffers.lent == 1


def test_buffers_of_a_worker_that_died_are_not_used_again(settings, fake, buffers):
    client = WorkerClient(settings.address, "model", buffers)
    prompt = make_prompt(8)
    assert client.ask("one", Parts.of(prompt), prompt.ids) is None
    sent = json.loads(fake.lines.readline())
    fake.lines.close()
    fake.connection.close()
    answer = client.ask("one", Parts.of(prompt), prompt.ids)
    assert isinstance(answer, Refused)
    assert "the worker is gone" in answer.reason
    assert not Path(sent["buffer"]).exists()
    assert buffers.lent == 0


def test_without_a_worker_requests_are_refused_at_once(settings, buffers):
    client = WorkerClient(settings.address, "model", buffers)
    prompt = make_prompt(9)
    answer = client.ask("one", Parts.of(prompt), prompt.ids)
    assert isinstance(answer, Refused)
    assert "there is no worker" in answer.reason


def test_the_worker_tells_how_it_is(settings, worker):
    connection = Connection(settings.address)
    connection.send("status")
    (status,) = connection.receive(5)
    assert status["waiting"] == 0
    assert status["identity"] == worker.identity


def test_a_connection_that_sends_nonsense_is_closed(settings, worker):
    connection = Connection(settings.address)
    connection._socket.sendall(b"nonsense\n")
    with pytest.raises(ConnectionError):
        list(connection.receive(5))
    assert isinstance(Connection(settings.address), Connection)


def test_buffers_of_a_process_that_ended_are_removed(buffers):
    own = buffers.take()
    program = "from ragkv.serving.buffers import Buffers; print(Buffers(1, 1 << 12).take())"
    lost = Path(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip())
    assert lost.exists()
    Buffers(1, 1 << 12)
    assert not lost.exists()
    assert Path(own).exists()


def test_a_buffer_that_another_engine_removed_before_it_was_locked_is_not_used(buffers, monkeypatch):
    removed = []

    def lock(file: int, kind: int) -> None:
        flock(file, kind)
        if not removed:
            removed.append(os.readlink(f"/proc/self/fd/{file}"))
            os.unlink(removed[0])

    monkeypatch.setattr("ragkv.serving.buffers.flock", lock)
    path = buffers.take()
    assert removed != [path]
    assert Path(path).exists()


def expected_buffer(model, prompt: Prompt) -> torch.Tensor:
    """What a buffer must hold of a prompt that was fused with all of its chunks reused."""
    store = KVStore("memory://expected")
    precompute(model, [prompt], store)
    layers = fused_prefill(model, prompt, store, get_selector("full_reuse")).cache.layers
    pairs = [torch.stack([layer.keys[0], layer.values[0]]) for layer in layers]
    return torch.stack(pairs).transpose(2, 3)


def test_engines_that_share_a_worker_get_their_own_answers(settings, worker, tiny_llama):
    """Their requests have the same names and numbers, and come by turns."""
    engines = [WorkerClient(settings.address, worker.identity, Buffers(2, SHAPE.numbers(TOKENS) * 4)) for _ in range(2)]
    prompts = [[make_prompt(10 * engine + number) for number in range(4)] for engine in range(2)]
    waiting = [(engine, number) for number in range(4) for engine in range(2)]
    while waiting:
        for engine, number in list(waiting):
            prompt = prompts[engine][number]
            answer = engines[engine].ask(str(number), Parts.of(prompt, "full_reuse"), prompt.ids)
            if answer is not None:
                torch.testing.assert_close(held(answer), expected_buffer(tiny_llama[0], prompt))
                engines[engine].loaded(str(number))
                waiting.remove((engine, number))
    for engine in engines:
        engine.close()


def test_an_engine_that_ends_takes_nothing_from_another_one(settings, worker, buffers, client):
    ending = WorkerClient(settings.address, worker.identity, Buffers(4, SHAPE.numbers(TOKENS) * 4))
    prompt = make_prompt(11)
    for number in range(4):
        assert ending.ask(str(number), Parts.of(prompt), prompt.ids) is None
    assert client.ask("one", Parts.of(prompt), prompt.ids) is None
    ending.close()
    assert isinstance(wait(client, "one", prompt), Fused)
