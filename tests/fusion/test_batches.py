"""Prompts that are prefilled together give what each of them gives on its own."""

from dataclasses import dataclass
from random import Random
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_caches_agree, fuse, make_model, memory_store, random_prompt, relative_error, shared_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ragkv import Prompt, StoreError, decode, fused_prefill, fused_prefills, precompute
from ragkv.eviction import get_eviction
from ragkv.fusion.workspace import Workspace
from ragkv.loading.memory import InMemory
from ragkv.models import decoder
from ragkv.selectors import Ask, Look, Selector, get_selector

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the compiled kernels")
SELECTORS = {
    "full_prefill": ("full_prefill", {}),
    "full_reuse": ("full_reuse", {}),
    "cat": ("cat", {}),
    "epic": ("epic", {"ratio": 0.2}),
    "surprisal": ("surprisal", {"ratio": 0.2}),
    "a3": ("a3", {"ratio": 0.2}),
    "a3 on stored keys": ("a3", {"ratio": 0.2, "keys": "stored", "layer": 2}),
    "cacheblend": ("cacheblend", {"ratio": 0.2}),
    "cacheblend in two layers": ("cacheblend", {"ratio": 0.2, "checks": 2}),
    "probe": ("probe", {"ratio": 0.2}),
    "probe with a threshold": ("probe", {"ratio": 0.4, "threshold": 0.1}),
}
LENGTHS = ((13, 7, 20), (40,), (3, 4), (), (9, 31, 2))  # of the chunks of prompts


@pytest.fixture(params=SELECTORS)
def selector(request):
    name, options = SELECTORS[request.param]
    return get_selector(name, **options)


def prompts_of(rng, lengths=LENGTHS):
    """Prompts of different lengths; some have no prefix, one has no document."""
    return [
        random_prompt(rng, chunks, question=2 + number, prefix=None if number % 3 == 2 else 4)
        for number, chunks in enumerate(lengths)
    ]


def stored(model, prompts):
    store = memory_store()
    precompute(model, prompts, store)
    return store


def assert_same(together, alone, bound=1e-5):
    assert len(together) == len(alone)
    for found, expected in zip(together, alone, strict=True):
        assert found.tokens == expected.tokens
        assert torch.equal(found.selected, expected.selected)
        assert relative_error(found.logits, expected.logits) <= bound
        assert_caches_agree(found.cache, expected.cache, bound)


def test_every_family_and_selector_gives_the_same(model, selector, rng):
    prompts = prompts_of(rng)
    store = stored(model, prompts)
    assert_same(
        fused_prefills(model, prompts, store, selector),
        [fused_prefill(model, prompt, store, selector) for prompt in prompts],
    )


@st.composite
def batches(draw):
    prompts = []
    for seed in range(draw(st.integers(1, 16))):
        chunks = draw(st.lists(st.integers(1, 12), max_size=4).map(tuple))
        question = draw(st.integers(1, 5))
        prefix = draw(st.sampled_from([None, 1, 4]))
        prompts.append(random_prompt(Random(seed), chunks, question, prefix))
    return prompts


@settings(max_examples=6)
@given(batches(), st.sampled_from([0.0, 0.05, 0.3, 1.0]))
@example([random_prompt(Random(0))] * 2, 0.3)  # the same prompt twice
@pytest.mark.parametrize("name", ["epic", "a3", "a3 on stored keys", "cacheblend", "probe"])
def test_any_numbers_and_lengths_of_prompts_give_the_same(name, prompts, ratio):
    """Also where some prompts' budgets are 0, so that the probe looks only at the others."""
    model = shared_model("qwen2")
    name, options = SELECTORS[name]
    selector, store = get_selector(name, **options | {"ratio": ratio}), stored(model, prompts)
    assert_same(
        fused_prefills(model, prompts, store, selector),
        [fused_prefill(model, prompt, store, selector) for prompt in prompts],
    )


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_a_workspace_gives_the_same_batch_after_batch(llama, selector, rng, backend):
    """Also for a single prompt between batches."""
    workspace = Workspace(llama, 250)
    for lengths in (LENGTHS, LENGTHS[1:2], LENGTHS[::-1][:3]):
        prompts = prompts_of(rng, lengths)
        store = stored(llama, prompts)
        alone = [fused_prefill(llama, prompt, store, selector, backend=backend) for prompt in prompts]
        assert_same(fused_prefills(llama, prompts, store, selector, backend=backend, workspace=workspace), alone)


def test_a_workspace_takes_more_tokens_than_a_model_s_window(rng):
    """Each prompt fits into the window; all of them together do not."""
    model, prompts = make_model("mistral", sliding_window=60), prompts_of(rng)
    assert sum(len(prompt.ids) for prompt in prompts) > 60
    store, selector = stored(model, prompts), get_selector("a3", ratio=0.2)
    together = fused_prefills(model, prompts, store, selector, workspace=Workspace(model, 250))
    assert_same(together, [fused_prefill(model, prompt, store, selector) for prompt in prompts])


@pytest.mark.parametrize("lent", [False, True], ids=["own memory", "in a workspace"])
def test_every_prompt_can_be_decoded_from_its_cache(rng, lent):
    """In any order and again: what is decoded for one prompt changes no other cache."""
    model = make_model("llama")
    model.generation_config.eos_token_id = None
    prompts, selector = prompts_of(rng), get_selector("a3", ratio=0.2)
    store = stored(model, prompts)
    expected = [
        decode(model, fused_prefill(model, prompt, store, selector), max_new_tokens=6).ids for prompt in prompts
    ]
    together = fused_prefills(model, prompts, store, selector, workspace=Workspace(model, 250) if lent else None)
    for number in (3, 0, 4, 0, 1, 2):
        assert decode(model, together[number], max_new_tokens=6).ids == expected[number]
    assert [prefill.cache.get_seq_length() for prefill in together] == [len(prompt.ids) for prompt in prompts]


@pytest.mark.parametrize("lent", [False, True], ids=["own memory", "in a workspace"])
@pytest.mark.parametrize("name", ["streaming", "snapkv"])
def test_an_eviction_keeps_of_each_prompt_what_it_keeps_alone(llama, rng, name, lent):
    prompts, selector = prompts_of(rng, LENGTHS[:3]), get_selector("epic", ratio=0.2)
    store, eviction = stored(llama, prompts), get_eviction(name, capacity_ratio=0.9)
    together = fused_prefills(
        llama, prompts, store, selector, eviction=eviction, workspace=Workspace(llama, 250) if lent else None
    )
    alone = [fused_prefill(llama, prompt, store, selector, eviction=eviction) for prompt in prompts]
    assert_same(together, alone)
    assert [prefill.cache.get_seq_length() < prefill.tokens for prefill in together[:2]] == [True, True]


@pytest.mark.parametrize(("name", "earlier"), [("full_reuse", 0), ("a3 on stored keys", 2), ("probe", 9)])
def test_all_prompts_go_through_a_layer_at_once(llama, rng, monkeypatch, name, earlier):
    """However many there are. Before the last pass, `a3` needs the layers below its own, and `probe` three passes."""
    prompts = prompts_of(rng)
    store, rows = stored(llama, prompts), []

    def run_layer(layer, hidden, *args, real=decoder.run_layer, **options):
        rows.append(hidden.shape[1])
        return real(layer, hidden, *args, **options)

    monkeypatch.setattr(decoder, "run_layer", run_layer)
    name, options = SELECTORS[name]
    together = fused_prefills(llama, prompts, store, get_selector(name, **options))
    assert len(rows) == earlier + llama.config.num_hidden_layers
    assert rows[-1] == sum(len(prefill.selected) for prefill in together)


@dataclass(frozen=True)
class Mixed(Selector):
    """Asks for other passes in long documents than in short ones, and in some for none."""

    def choose(self, seen):
        document = len(seen.prompt.document_span)
        if document > 41:
            return torch.tensor([0])
        return self._look_first(document)

    def _look_first(self, document):
        scores = torch.zeros(document)
        if document > 30:
            seen = yield Ask(1)
            scores = seen.keys[0, :, :document].sum((0, 2))
        newest = scores.argmax()[None]
        attention = yield Look(newest, power=1.0 + document % 2)
        best = attention[-1].sum(0).topk(3).indices
        return torch.cat((newest, best)).unique()


def test_prompts_that_ask_for_different_passes_are_answered_apart(llama, rng):
    prompts = prompts_of(rng)
    store = stored(llama, prompts)
    together = fused_prefills(llama, prompts, store, Mixed())
    assert_same(together, [fused_prefill(llama, prompt, store, Mixed()) for prompt in prompts])
    assert (
        len({len(prefill.selected) - len(prompt.question) for prefill, prompt in zip(together, prompts, strict=True)})
        > 2
    )


def test_no_prompts_have_no_prefills(llama):
    assert fused_prefills(llama, [], None, get_selector("a3")) == []


@dataclass(frozen=True)
class Repeating(Selector):
    """Names a token twice in the documents that have more than 30 of them."""

    wrong: int = 0

    def choose(self, seen):
        document = len(seen.prompt.document_span)
        return torch.tensor([1, 0, 1 + self.wrong] if document > 30 else [1, 0])


def test_a_choice_that_names_a_token_twice_runs_again(llama, rng):
    prompts = prompts_of(rng, LENGTHS[:3])
    store = stored(llama, prompts)
    together = fused_prefills(llama, prompts, store, Repeating())
    assert_same(together, [fused_prefill(llama, prompt, store, Repeating()) for prompt in prompts])
    starts = [prompt.document_span.start for prompt in prompts]
    assert [prefill.selected.tolist()[:2] for prefill in together] == [[start, start + 1] for start in starts]


def test_a_choice_outside_a_document_names_the_prompt(llama, rng):
    prompts = prompts_of(rng, ((3, 4), (40,)))
    with pytest.raises(ValueError, match="prompt 2 of 2: Repeating chose a token outside the document's 40"):
        fused_prefills(llama, prompts, stored(llama, prompts), Repeating(wrong=90))


@pytest.fixture
def nothing_runs(monkeypatch):
    """Fails the test if a layer is computed."""

    def run_layer(*args, **options):
        raise AssertionError("a layer was computed")

    return lambda: monkeypatch.setattr(decoder, "run_layer", run_layer)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Prompt([1], [[5, 999]], [6]), "prompt 3 of 4: token id 999 is outside the model's vocabulary of 200"),
        (Prompt([1], [[5] * 600], [6]), "prompt 3 of 4: the prompt has 602 tokens, more than the model's 512"),
        (Prompt([1], [[5]], [6], contexts=[[9] * 600]), "prompt 3 of 4: a chunk and its context have 601 tokens"),
    ],
)
def test_a_bad_prompt_is_named_before_anything_is_computed(llama, rng, nothing_runs, bad, message):
    prompts = prompts_of(rng, LENGTHS[:3])
    store = stored(llama, prompts)
    nothing_runs()
    with pytest.raises(ValueError, match=message):
        fused_prefills(llama, [*prompts[:2], bad, prompts[2]], store, get_selector("a3"))


@pytest.mark.parametrize("name", ["a3", "cat"])
def test_a_prompt_whose_segments_are_missing_is_named(llama, rng, nothing_runs, name):
    prompts = prompts_of(rng, LENGTHS[:3])
    store = stored(llama, prompts[:1] + prompts[2:])
    nothing_runs()
    with pytest.raises(StoreError, match="prompt 2 of 3: 2 of the prompt's 2 segments are not in the store"):
        fused_prefills(llama, prompts, store, get_selector(name))


def test_prompts_too_long_for_a_workspace_or_an_eviction_are_refused(llama, rng):
    prompts, selector = prompts_of(rng), get_selector("full_prefill")
    tokens = sum(len(prompt.ids) for prompt in prompts)
    with pytest.raises(
        ValueError, match=rf"room for 60 tokens, the 5 prompts have {tokens} together: .* fewer prompts"
    ):
        fused_prefills(llama, prompts, None, selector, workspace=Workspace(llama, 60))
    with pytest.raises(ValueError, match="prompt 2 of 5: the capacity is 6 tokens"):
        fused_prefills(llama, prompts, None, selector, eviction=get_eviction("streaming", capacity=6))


def test_a_single_prompt_keeps_its_message(llama):
    with pytest.raises(ValueError, match=r"^token id 999"):
        fused_prefills(llama, [Prompt([1], [[5, 999]], [6])], None, get_selector("full_prefill"))


class Rerun:
    """Captures graphs that are their steps, run once more."""

    def __call__(self, device, run, what):
        run()
        return SimpleNamespace(replay=run)


def with_kernels(monkeypatch):
    """As on a GPU, but for norms, rotation and writing. Triton's interpreter runs the kernels."""
    for module in ("workspace_memory.has_kernel", "attention.has_kernel", "placement.kernels_run"):
        monkeypatch.setattr(f"ragkv.fusion.{module}", lambda _: True)


def in_memory(model, prompts):
    store = InMemory({})
    for prompt in prompts:
        store.segments |= InMemory.computed(model, prompt).segments
    return store


@CPU_ONLY
@pytest.mark.parametrize("rows", [0, 100], ids=["without graphs", "with graphs"])
@pytest.mark.parametrize("name", ["full_reuse", "a3", "a3 on stored keys", "probe"])
def test_one_launch_serves_all_prompts(rng, monkeypatch, name, rows):
    """The kernels that a GPU runs, interpreted: placing, attention, and the sums of its weights."""
    pytest.importorskip("triton", reason="Triton is not installed")
    model = make_model("qwen2")
    name, options = SELECTORS[name]
    prompts, selector = prompts_of(rng, ((13, 7), (30,), (5,))), get_selector(name, **options)
    store = in_memory(model, prompts)
    alone = [fused_prefill(model, prompt, store, selector) for prompt in prompts]
    with_kernels(monkeypatch)
    monkeypatch.setattr("ragkv.fusion.graphs.STEP", 8)
    workspace = Workspace(model, 150, rows=rows, capture=Rerun())
    for _ in range(2):
        assert_same(fused_prefills(model, prompts, store, selector, workspace=workspace), alone, 1e-4)


class Operations(TorchDispatchMode):
    """Counts what PyTorch is asked to do."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **kwargs or {})


@CPU_ONLY
def test_a_layer_starts_as_much_for_many_prompts_as_for_two(llama, rng, monkeypatch):
    """Where the package's own kernel computes attention, which is one launch."""
    kernels = pytest.importorskip("ragkv.kernels.attention", reason="Triton is not installed")
    monkeypatch.setattr(kernels, "position_causal", lambda query, *args, **options: torch.zeros_like(query))
    with_kernels(monkeypatch)
    counts = []

    def run_layer(*args, real=decoder.run_layer, **options):
        with Operations() as operations:
            result = real(*args, **options)
        counts.append(operations.count)
        return result

    monkeypatch.setattr(decoder, "run_layer", run_layer)
    workspace, by_prompts = Workspace(llama, 800, rows=0, capture=Rerun()), []
    for prompts in (prompts_of(rng, LENGTHS[:2]), prompts_of(rng, LENGTHS * 3)):
        store = in_memory(llama, prompts)
        counts.clear()
        fused_prefills(llama, prompts, store, get_selector("epic", ratio=0.1), workspace=workspace)
        by_prompts.append(tuple(counts))
    assert len(by_prompts[0]) == llama.config.num_hidden_layers
    assert by_prompts[0] == by_prompts[1]


def test_own_memory_is_that_of_all_caches(llama, rng):
    """One piece per layer, of which each cache is a view."""
    prompts = prompts_of(rng)
    together = fused_prefills(llama, prompts, stored(llama, prompts), get_selector("a3", ratio=0.2))
    for layer in range(llama.config.num_hidden_layers):
        keys = [prefill.cache.layers[layer].keys for prefill in together]
        storages = {states.untyped_storage().data_ptr(): states.untyped_storage().nbytes() for states in keys}
        assert [*storages.values()] == [sum(states.nbytes for states in keys)]


def test_a_batch_of_one_is_a_prefill(llama, rng):
    prompt = random_prompt(rng)
    [found] = fused_prefills(llama, [prompt], stored(llama, [prompt]), get_selector("a3"))
    assert torch.equal(found.logits, fuse(llama, prompt, "a3").logits)
