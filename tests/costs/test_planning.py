"""Estimates, compared with what models and stores really have."""

import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from random import Random

import pytest
import torch
from helpers import FAMILIES, ROOT, make_model, memory_store, random_prompt, shared_model
from torch.utils.flop_counter import FlopCounterMode

from ragkv import fused_prefill, load_model, precompute
from ragkv.bench.speed import measure_speed
from ragkv.costs.prefill import bytes_moved, operations, precompute_operations
from ragkv.costs.shape import SHAPES, Shape
from ragkv.costs.speed import Speed
from ragkv.experiment.durations import duration, plan, steps
from ragkv.experiment.experiment import Experiment
from ragkv.experiment.profile import load_profile
from ragkv.models import decoder
from ragkv.planning import readable_time
from ragkv.selectors import Selector, get_selector

SLOW = Speed("a GPU", tflops=400, memory_gbs=2500, reuse_gbs=20, layer=0.0)


@dataclass(frozen=True)
class Given(Selector):
    tokens: tuple = ()

    def choose(self, seen):
        return torch.tensor(self.tokens)


class Observing(Given):
    observes = True


def shape_of(model):
    c = model.config
    return Shape(
        c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads,
        model.model.layers[0].self_attn.head_dim, c.vocab_size,
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_the_matrices(family):
    model = shared_model(family)
    matrices = sum(w.numel() for name, w in model.named_parameters() if w.dim() == 2 and "embed" not in name)
    assert shape_of(model).weights == matrices


def test_operations_agree_with_a_counter():
    """PyTorch counts the matrix products, and attention over all pairs, of which causal attention needs half."""
    llama, tokens = make_model("llama", attn_implementation="eager"), 48
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        llama.model(torch.arange(3, 3 + tokens)[None])
    shape = shape_of(llama)
    linear = 2 * shape.layer_weights * tokens * shape.layers
    pairs = counter.get_total_flops() - linear
    assert shape.prefill(tokens, tokens, shape.layers) == pytest.approx(linear + pairs / 2)


class WithoutModules(nullcontext):
    """In place of the counter's hooks on all modules, which a prefill refuses: everything counts as one."""

    parents = ("Global",)


@pytest.mark.parametrize(
    ("name", "options"),
    [("probe", {"hops": 3}), ("probe", {"hops": 4, "looking": 0.01}), ("cacheblend", {}), ("a3", {})],
)
def test_choosing_takes_at_most_the_operations_that_are_planned(name, options):
    """PyTorch counts the difference between a selector and one that knows its choice beforehand."""
    llama = make_model("llama")
    prompt, store = random_prompt(Random(0), chunks=(100, 100), question=8, prefix=1), memory_store()
    precompute(llama, [prompt], store)
    selector = get_selector(name, ratio=0.06, **options)

    def counted(chooser):
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = WithoutModules()
        with counter:
            found = fused_prefill(llama, prompt, store, chooser)
        return counter.get_total_flops(), found.selected

    total, selected = counted(selector)
    document = [p - 1 for p in selected.tolist() if p in prompt.document_span]
    chooser = Observing if selector.observes else Given
    known, again = counted(chooser(layer=selector.layer, tokens=tuple(document)))
    assert torch.equal(selected, again)
    estimate = selector.operations(shape_of(llama), len(prompt.ids), 8)
    assert 0 <= total - known <= 1.05 * estimate


def test_choosing_takes_a_small_share():
    """At most 5 % of a full prefill, at the lengths and shapes that fused prefills are meant for."""
    for model in SHAPES:
        shape, length, question = Shape.of(model), 8192, 32
        for selector in ("probe", "a3", "cacheblend", "a3_blend"):
            chosen = get_selector(selector, ratio=0.02)
            assert chosen.operations(shape, length, question) <= 0.05 * shape.prefill(length, length, shape.layers)


def test_a_stored_prompt_has_the_planned_bytes(llama):
    store, prompt = memory_store(), random_prompt(Random(0), chunks=(400,), question=3, prefix=None)
    done = precompute(llama, [prompt], store)
    assert done.bytes == pytest.approx(400 * shape_of(llama).bytes_per_token(4), rel=0.05)


def test_recomputing_less_takes_less():
    shape = Shape.of("tiny-llama")
    full = operations(shape, get_selector("full_prefill"), 1000)
    some = [operations(shape, get_selector("a3", ratio=ratio), 1000) for ratio in (0.05, 0.15, 0.5)]
    assert full == pytest.approx(shape.prefill(1000, 1000, shape.layers))
    assert some == sorted(some)
    assert some[-1] < full


@pytest.mark.parametrize(
    ("name", "options"),
    [("full_prefill", {}), ("full_reuse", {}), ("a3", {}), ("probe", {"hops": 1}), ("probe", {"hops": 3})],
)
def test_bytes_moved_are_those_counted_by_hand(name, options, monkeypatch):
    """Passes are counted as they run, and bytes are those of the real tensors."""
    model, _ = load_model("tiny-llama", device="cpu")
    prompt, store = random_prompt(Random(0), chunks=(50, 60), question=9), memory_store()
    precompute(model, [prompt], store)
    passes, asked, head = [], [], model.lm_head
    last, finish, logits = model.model.layers[-1], decoder.finish, decoder.logits
    monkeypatch.setattr(
        decoder, "finish", lambda at, *rest: (passes.append(1) if at is last else None, finish(at, *rest))[1]
    )
    monkeypatch.setattr(decoder, "logits", lambda m, h: (asked.append(1), logits(m, h))[1])
    prefill = fused_prefill(model, prompt, store, selector := get_selector(name, **options))
    layers = sum(module.weight.nbytes for module in model.model.modules() if isinstance(module, torch.nn.Linear))
    read_from_the_store = prefill.cache_bytes if selector.reuses else 0
    expected = read_from_the_store + prefill.cache_bytes + len(passes) * (layers + prefill.cache_bytes)
    expected += len(asked) * head.weight.nbytes
    assert len(passes) == 1 + selector.passes
    assert bytes_moved(Shape.of("tiny-llama"), selector, len(prompt.ids), size=4) == expected


def test_every_format_and_context_takes_its_share_of_the_store(tmp_path):
    """On top of two bytes a number, fp8 adds a half, int4 a quarter, and another context in fp8 one more half."""
    (tmp_path / "params").mkdir()

    def stored(*ways):
        methods = [{"selector": "full_reuse", "label": str(n), "offline": way} for n, way in enumerate(({}, *ways))]
        profile = {"models": ["tiny-llama"], "methods": methods}
        profile["benchmarks"] = {"ruler": {"source": "tiny", "tasks": {"vt_1": {}}}}
        (tmp_path / "params/p.yaml").write_text(json.dumps(profile))
        return plan(Experiment.load("p", root=tmp_path), SLOW, size=2)["bytes"].sum()

    fp8, int4, prefix = {"format": "fp8"}, {"format": "int4"}, {"format": "fp8", "context": "prefix"}
    for ways, factor in (((), 1), ((fp8,), 1.5), ((fp8, fp8), 1.5), ((fp8, int4), 1.75), ((fp8, prefix), 2)):
        assert stored(*ways) == pytest.approx(factor * stored())


def test_what_is_not_stored_is_computed_while_answering(monkeypatch):
    """If files took no time, it would take as long as storing it first."""
    monkeypatch.setattr("ragkv.costs.speed.FILE_SECONDS", 0.0)
    monkeypatch.setattr("ragkv.costs.speed.CHECKED_GBS", float("inf"))
    experiment = Experiment.load("smoke", root=ROOT)
    kept = plan(experiment, SLOW, size=4)
    store = experiment.profile.store.model_copy(update={"keep": False})
    profile = experiment.profile.model_copy(update={"store": store})
    computed = plan(experiment.model_copy(update={"profile": profile}), SLOW, size=4)
    assert (computed[["precompute", "bytes"]] == 0).all().all() and (kept["bytes"] > 0).all()
    assert computed["answering"].tolist() == pytest.approx((kept["precompute"] + kept["answering"]).tolist())


@pytest.mark.parametrize("model", load_profile("paper", ROOT / "params").models)
def test_ready_profiles_can_be_planned_without_their_weights(model):
    experiment = Experiment.load("paper", model=model, root=ROOT)
    table = plan(experiment, SLOW, size=2)
    assert list(zip(table["benchmark"], table["task"], strict=True)) == experiment.tasks
    assert (table[["precompute", "answering", "bytes"]] > 0).all().all()
    faster = plan(experiment, replace(SLOW, tflops=800, memory_gbs=5000, reuse_gbs=40), size=2)
    assert (faster["answering"] < table["answering"]).all() and (faster["precompute"] < table["precompute"]).all()
    assert (faster["bytes"] == table["bytes"]).all()


def test_precomputing_takes_a_prefill_for_each_chunk():
    shape = Shape.of("tiny-llama")
    one = shape.prefill(100, 100, shape.layers)
    assert precompute_operations(shape, 700, 100) == pytest.approx(7 * one)
    assert precompute_operations(shape, 100, 512) == pytest.approx(one)  # shorter than a chunk


def test_a_selector_of_your_own_need_not_say_what_it_costs():
    """Its prefill is then planned from its recomputed tokens alone."""
    shape, mine = Shape.of("tiny-llama"), Given(ratio=0.2)
    assert (mine.passes, mine.operations(shape, 1000, 32)) == (0, 0)
    assert operations(shape, mine, 1000) == operations(shape, get_selector("epic", ratio=0.2), 1000)


@dataclass(frozen=True)
class Costly(Given):
    """Makes two passes, and says how much choosing takes."""

    @property
    def passes(self):
        return 2

    def operations(self, shape, tokens, question):
        return 1e6 * tokens + question


def test_what_a_selector_says_of_its_cost_is_counted():
    shape, plain, costly = Shape.of("tiny-llama"), Given(ratio=0.2), Costly(ratio=0.2)
    more = operations(shape, costly, 1000, question=50) - operations(shape, plain, 1000, question=50)
    assert more == pytest.approx(1e6 * 1000 + 50)
    layers = shape.layers * shape.layer_weights
    assert bytes_moved(shape, costly, 1000) - bytes_moved(shape, plain, 1000) == 2 * (
        2 * layers + 1000 * shape.bytes_per_token(2)
    )


def test_an_unknown_shape_is_an_error():
    with pytest.raises(ValueError, match=r"the shape of 'no/model' is not known.*plan with one of meta-llama"):
        Shape.of("no/model")


def test_a_prefill_takes_its_operations_its_weights_and_its_loading():
    """At a speed of one each, seconds are the numbers of operations and bytes; then everything twice as fast."""
    shape, selector = Shape.of("tiny-llama"), get_selector("probe", ratio=0.1, hops=2)
    speed = Speed("slow", tflops=1e-12, memory_gbs=1e-9, reuse_gbs=1e-9, layer=1.0)
    passes, reused = 3, 1000 * shape.bytes_per_token(4)
    expected = operations(shape, selector, 1000) + 4 * shape.weights_read(passes) + reused + passes * shape.layers
    assert speed.prefill(shape, selector, 1000, size=4) == pytest.approx(expected)
    assert speed.decoding(shape, size=4) == 4 * shape.weights + shape.layers
    exact = get_selector("full_prefill")
    assert speed.prefill(shape, exact, 1000, 4) == pytest.approx(
        operations(shape, exact, 1000) + 4 * shape.weights + shape.layers
    )


def test_jobs_side_by_side_take_no_longer_than_in_order_and_no_less_than_their_work():
    seconds = {"environment": 1.0, "chunking": 2.0, "precompute": 4.0, "tokens": 8.0, "frontier": 16.0}
    seconds |= {"evaluate a": 100.0, "evaluate b": 50.0}
    work = sum(seconds.values())
    assert duration([seconds] * 3, report=5.0, jobs=1) == 3 * work + 5
    assert duration([seconds] * 3, report=5.0, jobs=2) == 1.5 * work + 5
    assert duration([seconds], report=5.0, jobs=100) == 1 + 2 + 4 + 100 + 16 + 5


def test_every_step_of_a_run_is_planned():
    experiment = Experiment.load("smoke", root=ROOT)
    table = plan(experiment, SLOW, size=4)
    seconds = steps(experiment, table, SLOW, size=4)
    evaluations = {f"evaluate {name}" for name in experiment.profile.benchmarks}
    assert set(seconds) == {"environment", "chunking", "precompute", "tokens", "frontier"} | evaluations
    assert min(seconds.values()) > 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (89, "89 seconds"),
        (600, "10 minutes"),
        (5400, "1.5 hours"),
        (90_000, "25 hours"),
        (864_000, "10 days"),
    ],
)
def test_times_are_told_in_units_that_people_read(seconds, text):
    assert readable_time(seconds) == text


def test_this_machine_is_measured():
    speed = measure_speed(torch.device("cpu"), torch.float32)
    assert min(speed.tflops, speed.memory_gbs, speed.reuse_gbs, speed.layer) > 0
    assert speed.device.startswith("CPU")
