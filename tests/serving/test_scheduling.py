"""Which requests are fused, and when their buffers are free again, without vLLM and without a worker."""

import logging
from dataclasses import dataclass, field
from typing import Any

import pytest

from ragkv.serving.parts import Parts
from ragkv.serving.scheduling import Scheduling
from ragkv.serving.worker_client import Fused, Refused

PARTS = Parts(2, (30, 40), 28)
READY = Fused("/dev/shm/buffer", 100, reused=2, segments=3, seconds=0.5)


@dataclass
class Request:
    """What vLLM's request has of use here."""

    request_id: str = "one"
    prompt_token_ids: list[int] | None = field(default_factory=lambda: list(range(100)))
    kv_transfer_params: dict[str, Any] | None = field(default_factory=PARTS.params)
    cache_salt: str | None = "salt"
    lora_request: Any = None
    num_preemptions: int = 0
    skip_reading_prefix_cache: bool = False


class FakeClient:
    """Answers as it is told to, and writes down what is done with the answers."""

    def __init__(self, answer: Fused | Refused | None = READY):
        self.now = answer
        self.calls: list[tuple[str, str]] = []

    def ask(self, name: str, parts: Parts, ids: object) -> Fused | Refused | None:
        self.calls.append(("ask", name))
        return self.now

    def answer(self, name: str) -> Fused:
        return self.now

    def loaded(self, name: str) -> None:
        self.calls.append(("loaded", name))

    def forget(self, name: str) -> None:
        self.calls.append(("forget", name))


def scheduling(client: FakeClient, prefix_caching: bool = True) -> Scheduling:
    return Scheduling(client, logging.getLogger("vllm.ragkv"), prefix_caching=prefix_caching)


def test_a_request_waits_until_the_worker_has_answered_and_gets_all_tokens_but_the_last():
    client = FakeClient(None)
    decide = scheduling(client)
    assert decide.tokens(Request(), 0) is None
    client.now = READY
    assert decide.tokens(Request(), 0) == 99
    decide.load(Request(), [7, 8], 99)
    (load,) = decide.take_loads()
    assert (load.start, load.stop, load.blocks) == (0, 99, [7, 8])
    assert decide.take_loads() == []


def test_after_a_preemption_only_the_rest_is_loaded():
    """Its first blocks are still in vLLM's prefix cache."""
    decide = scheduling(FakeClient())
    assert decide.tokens(Request(num_preemptions=1), 64) == 35
    decide.load(Request(num_preemptions=1), [7, 8], 35)
    (load,) = decide.take_loads()
    assert (load.start, load.stop) == (64, 99)


def test_a_buffer_is_free_after_the_step_that_reads_it_even_if_its_request_ends_before():
    client = FakeClient()
    decide = scheduling(client)
    decide.tokens(Request(), 0)
    decide.load(Request(), [7], 99)
    decide.finished("one")
    assert ("forget", "one") not in client.calls
    decide.loaded({"one"})
    assert client.calls[-1] == ("loaded", "one")
    decide.finished("two")  # one that never began
    assert client.calls[-1] == ("forget", "two")


def test_a_buffer_that_is_loaded_twice_is_free_after_the_second_step():
    """With steps in flight, vLLM can preempt a request and load it again before it hears that the first step ended."""
    client = FakeClient()
    decide = scheduling(client)
    for preemptions in range(2):
        assert decide.tokens(Request(num_preemptions=preemptions), 0) == 99
        decide.load(Request(num_preemptions=preemptions), [7], 99)
    decide.loaded({"one"})
    assert ("loaded", "one") not in client.calls
    decide.finished("one")
    assert ("forget", "one") not in client.calls
    decide.loaded({"one"})
    assert client.calls[-1] == ("loaded", "one")
    decide.finished("one")
    assert client.calls[-1] == ("forget", "one")


@pytest.mark.parametrize(
    ("change", "computed", "reason"),
    [
        ({"prompt_token_ids": None}, 0, "embeddings"),
        ({"lora_request": object()}, 0, "adapter"),
        ({"skip_reading_prefix_cache": True}, 0, "prompt_logprobs"),
        ({"cache_salt": None}, 0, "without a cache_salt"),
        ({}, 32, "its cache_salt was used before"),
        ({"prompt_token_ids": [1, 2, 3]}, 0, "the parts do not add up"),
    ],
)
def test_what_cannot_be_fused_is_vllms_and_the_log_says_why_once(change, computed, reason, caplog):
    client = FakeClient()
    decide = scheduling(client)
    assert [decide.tokens(Request(**change), computed) for _ in range(2)] == [0, 0]
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert client.calls == []
    assert decide.take_seen().counts == {"fallen_back": 1}


def test_what_the_worker_refuses_is_vllms(caplog):
    decide = scheduling(FakeClient(Refused("the worker is gone")))
    assert decide.tokens(Request(), 0) == 0
    assert "request one is prefilled by vLLM: the worker is gone" in caplog.text


def test_without_prefix_caching_no_salt_is_needed():
    assert scheduling(FakeClient(), prefix_caching=False).tokens(Request(cache_salt=None), 0) == 99


def test_other_requests_are_left_alone(caplog):
    client = FakeClient()
    decide = scheduling(client)
    for params in (None, {}, {"do_remote_prefill": True}):
        assert decide.tokens(Request(kv_transfer_params=params), 0) == 0
    assert client.calls == []
    assert caplog.text == ""


def test_fused_requests_are_counted():
    decide = scheduling(FakeClient())
    for name in ("one", "two"):
        decide.load(Request(request_id=name), [7], 99)
    seen = decide.take_seen()
    assert seen.counts == {"fused": 2, "segments": 6, "reused": 4}
    assert seen.seconds == [0.5, 0.5]
    assert decide.take_seen().counts == {}
