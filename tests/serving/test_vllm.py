"""Answers of vLLM with the connector, compared with ragkv's own decoding and with vLLM's own prefill."""

import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any

import pytest
from helpers import ROOT

from ragkv import KVStore, Prompt, decode, fused_prefill, load_model, precompute
from ragkv.models.load import model_source
from ragkv.selectors import get_selector
from ragkv.serving.documents import make_prompt
from ragkv.serving.messages import Connection
from ragkv.serving.parts import Parts
from ragkv.serving.processes import WorkerProcess, transfer_config
from ragkv.serving.settings import Settings

vllm = pytest.importorskip("vllm", reason="vLLM is not installed here: `make serving` runs these tests")


@lru_cache
def paragraphs() -> list[str]:
    """Paragraphs of the documentation."""
    found = re.split(r"\n{2,}", (ROOT / "docs" / "store.md").read_text())
    return [text for text in found if 100 < len(text) < 600 and not text.startswith(("#", "|", "```"))]


@dataclass
class Engine:
    """vLLM with the connector, its worker, and the same model in this process."""

    llm: Any
    worker: WorkerProcess
    model: Any
    tokenizer: Any
    new_tokens: int = 12

    def prompts(self, number: int, seed: int = 0) -> list[Prompt]:
        """Prompts over a few shared documents, in new orders."""
        rng, settings = Random(seed), self.worker.settings
        return [
            make_prompt(self.tokenizer, settings.instruction, rng.sample(paragraphs(), 4), f"What is said of {word}?")
            for word in rng.sample(" ".join(paragraphs()).split(), number)
        ]

    def fused(self, prompts: list[Prompt], ratio: float = 0.15, salted: bool = True) -> list[list[int]]:
        """vLLM's answers to prompts that name their parts."""
        return self._generate(prompts, [Parts.of(prompt, "a3", ratio=ratio).params() for prompt in prompts], salted)

    def plain(self, prompts: list[Prompt]) -> list[list[int]]:
        """vLLM's own answers."""
        return self._generate(prompts, [None] * len(prompts), False)

    def _generate(self, prompts: list[Prompt], params: list[dict | None], salted: bool) -> list[list[int]]:
        inputs, sampling = [], []
        for number, (prompt, entry) in enumerate(zip(prompts, params, strict=True)):
            salt = {"cache_salt": f"{time.time_ns()}-{number}"} if salted else {}
            inputs.append(vllm.TokensPrompt(prompt_token_ids=list(prompt.ids), **salt))
            extra = None if entry is None else {"kv_transfer_params": entry}
            sampling.append(vllm.SamplingParams(temperature=0, max_tokens=self.new_tokens, extra_args=extra))
        outputs = self.llm.generate(inputs, sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def own(self, prompts: list[Prompt], ratio: float = 0.15) -> list[list[int]]:
        """Ragkv's own answers, the end of sequence included."""
        store = KVStore("memory://own")
        precompute(self.model, prompts, store)
        answers = []
        for prompt in prompts:
            prefill = fused_prefill(self.model, prompt, store, get_selector("a3", ratio=ratio))
            answer = decode(self.model, prefill, max_new_tokens=self.new_tokens)
            answers.append(answer.ids + ([] if answer.stop is None else [answer.stop]))
        return answers

    def counts(self) -> dict[str, int]:
        """The connector's counters, and vLLM's own of preemptions."""
        values = {metric.name: getattr(metric, "value", None) for metric in self.llm.get_metrics()}
        names = ("ragkv_fused", "ragkv_fallen_back", "ragkv_segments", "ragkv_reused", "num_preemptions")
        return {name.removeprefix("ragkv_"): int(values.get(f"vllm:{name}") or 0) for name in names}


@contextmanager
def start_vllm(settings: Settings, **options: object) -> Iterator[Any]:
    """vLLM with the connector."""
    options = {"max_model_len": 2048, "disable_log_stats": False, **options}
    llm = vllm.LLM(
        settings.model,
        dtype="float32",
        max_num_seqs=16,
        enforce_eager=True,
        kv_transfer_config=transfer_config(settings),
        **options,
    )
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest):
    """Its parameter is the name of a model, and options of vLLM if there are any."""
    name, options = request.param
    try:
        model, tokenizer = load_model(name, device="cpu")
    except ImportError as error:
        pytest.skip(str(error))
    with TemporaryDirectory(prefix="ragkv-test-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        settings = Settings(
            model=str(model_source(name)), store=f"{folder}/kv", address=f"{folder}/socket", dtype="float32", threads=1
        )
        with WorkerProcess(settings) as worker, start_vllm(settings, **options) as llm:
            worker.wait_until_ready()
            yield Engine(llm, worker, model, tokenizer)


def engine_with(*models: str, **options: object) -> pytest.MarkDecorator:
    """Run a test with each of these models in vLLM, with options of vLLM."""
    ids = [" ".join([model, *options]) for model in models]
    return pytest.mark.parametrize("engine", [(model, options) for model in models], indirect=True, ids=ids)


every_model = engine_with("tiny-llama", "tiny-mistral", "tiny-qwen", "smollm2")
one_model = engine_with("tiny-llama")


@every_model
def test_sixteen_requests_at_once_get_ragkvs_own_answers(engine):
    prompts, before = engine.prompts(16), engine.counts()
    assert engine.fused(prompts) == engine.own(prompts)
    after = engine.counts()
    assert after["fused"] - before["fused"] == 16
    assert after["fallen_back"] == before["fallen_back"]


@every_model
def test_with_all_tokens_recomputed_answers_are_vllms_own(engine):
    prompts = engine.prompts(4, seed=1)
    assert engine.fused(prompts, ratio=1.0) == engine.plain(prompts)


def random_prompts(engine: Engine, number: int, seed: int = 3) -> list[Prompt]:
    """Prompts of random ids, after which even a small change of keys and values changes the answer."""
    rng = Random(seed)
    part = lambda length: [rng.randrange(10, engine.model.config.vocab_size) for _ in range(length)]  # noqa: E731
    return [Prompt([1, *part(4)], [part(100) for _ in range(4)], part(5)) for _ in range(number)]


@one_model
def test_the_prefix_cache_never_mixes_methods(engine):
    """The same tokens by turns: plain, fused with two ratios, and again."""
    prompts = random_prompts(engine, 4)
    plain = engine.plain(prompts)
    few, half = engine.own(prompts, 0.05), engine.own(prompts, 0.5)
    assert plain != few != half != plain, "with answers that are the same this test could not fail"
    for _ in range(2):
        assert engine.fused(prompts, 0.05) == few
        assert engine.plain(prompts) == plain
        assert engine.fused(prompts, 0.5) == half
    before = engine.counts()
    assert engine.fused(prompts, 0.05, salted=False) == plain
    assert engine.counts()["fallen_back"] - before["fallen_back"] == 4


@engine_with("tiny-llama", tensor_parallel_size=2)
def test_every_rank_of_tensor_parallelism_gets_its_own_heads(engine):
    prompts, before = random_prompts(engine, 4), engine.counts()
    assert engine.fused(prompts) == engine.own(prompts)
    assert engine.counts()["fused"] - before["fused"] == 4


# Two prompts of 410 tokens take 13 blocks each, and one block is vLLM's own: there is none left for their answers.
@engine_with("tiny-llama", block_size=32, num_gpu_blocks_override=27, max_model_len=512)
def test_a_request_that_vllm_preempts_gets_the_same_answer(engine):
    engine = replace(engine, new_tokens=48)
    prompts, before = random_prompts(engine, 6), engine.counts()
    assert engine.fused(prompts) == engine.own(prompts)
    after = engine.counts()
    assert after["num_preemptions"] > before["num_preemptions"], "without a preemption this test says nothing"
    assert after["fallen_back"] == before["fallen_back"]


@one_model
def test_two_engines_share_a_worker(engine):
    prompts = [random_prompts(engine, 8, seed) for seed in (4, 5)]
    with start_vllm(engine.worker.settings, disable_log_stats=True) as llm, ThreadPoolExecutor(2) as pool:
        engines = [engine, replace(engine, llm=llm)]
        before = prefills(engine)
        answers = list(pool.map(Engine.fused, engines, prompts))
    assert answers == [engine.own(own) for own in prompts]
    assert prefills(engine) - before == 16


def prefills(engine: Engine) -> int:
    """How many prefills the worker has answered."""
    connection = Connection(engine.worker.settings.address)
    connection.send("status")
    (status,) = connection.receive(10)
    connection.close()
    return status.get("prefill", 0)


@one_model
def test_parts_that_do_not_add_up_are_prefilled_by_vllm(engine):
    prompts, before = random_prompts(engine, 1), engine.counts()
    wrong = {"ragkv": {"prefix": 5, "chunks": [100], "question": 5}}
    assert engine._generate(prompts, [wrong], True) == engine.plain(prompts)
    assert engine.counts()["fallen_back"] - before["fallen_back"] == 1


def wait_for_another_worker(engine: Engine, starts: int) -> None:
    while engine.worker.starts == starts:
        time.sleep(0.05)
    engine.worker.wait_until_ready()


@one_model
def test_a_worker_that_is_killed_costs_no_answer(engine):
    prompts, before, starts = random_prompts(engine, 40), engine.counts(), engine.worker.starts
    fused, plain = engine.own(prompts), engine.plain(prompts)
    Timer(0.7, lambda: engine.worker.process.send_signal(signal.SIGKILL)).start()
    answers = engine.fused(prompts)
    wrong = [number for number, answer in enumerate(answers) if answer not in (fused[number], plain[number])]
    assert wrong == []
    after = engine.counts()
    assert after["fallen_back"] > before["fallen_back"]
    assert after["fused"] - before["fused"] + after["fallen_back"] - before["fallen_back"] == 40
    wait_for_another_worker(engine, starts)
    assert engine.fused(prompts) == fused


@one_model
def test_a_worker_with_another_model_is_refused(engine):
    prompts = random_prompts(engine, 2)
    worker = engine.worker
    own, starts = worker.settings, worker.starts
    worker.settings = replace(own, model=str(model_source("tiny-mistral")))
    worker.process.kill()
    wait_for_another_worker(engine, starts)
    before = engine.counts()
    assert engine.fused(prompts) == engine.plain(prompts)
    assert engine.counts()["fallen_back"] - before["fallen_back"] == 2
    worker.settings = own
    worker.process.kill()
    wait_for_another_worker(engine, starts + 1)
    assert engine.fused(prompts) == engine.own(prompts)
