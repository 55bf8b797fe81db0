"""The kernels compiled: every backend against float32, what is copied ahead, and runs that repeat."""

import pytest
import torch
from helpers import fuse, make_model, random_prompt, relative_error

from ragkv import decode, fused_prefill, precompute
from ragkv.eviction import get_eviction
from ragkv.fusion.workspace import Workspace
from ragkv.loading.memory import InMemory
from ragkv.loading.prefetch import PrefetchingStore
from ragkv.loading.segments import SegmentInMemory
from ragkv.models import flashinfer
from ragkv.models.attention import BACKENDS, attention_weights, sdpa
from ragkv.models.segment_pass import compute_segment
from ragkv.selectors import get_selector
from ragkv.store import KVStore, Layout
from ragkv.store.quantize import CODECS

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)  # here, so that hundreds of tests are not collected first

one_token = pytest.importorskip("ragkv.kernels.one_token", reason="Triton is not installed")

BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("tokens", "asked", "heads", "kv_heads", "head_dim"),
    [(1, 1, 4, 4, 64), (130, 1, 8, 2, 32), (777, 100, 8, 2, 128), (513, 200, 7, 7, 80), (2000, 37, 28, 4, 128),
     (999, 999, 4, 1, 96), (9001, 60, 8, 8, 64), (600, 64, 4, 2, 256)],
)  # fmt: skip
def test_backends_equal_the_reference_in_float32(backend, dtype, tokens, asked, heads, kv_heads, head_dim):
    torch.manual_seed(tokens)
    positions = torch.randperm(tokens, device="cuda")[:asked].sort().values
    query = torch.randn(1, heads, asked, head_dim, device="cuda").to(dtype)
    key, value = torch.randn(2, 1, kv_heads, tokens, head_dim, device="cuda").to(dtype)
    expected = sdpa(query.float().cpu(), key.float().cpu(), value.float().cpu(), positions.cpu(), 0.11)
    if backend.startswith("flashinfer") and (
        flashinfer.missing() or head_dim not in (64, 128, 256) or dtype == torch.float32
    ):
        pytest.skip(flashinfer.missing() or "FlashInfer has no such heads")
    found = BACKENDS[backend](query, key, value, positions, 0.11)
    assert found.dtype == dtype
    assert relative_error(found.cpu(), expected) <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("width", [64, 576, 4096, 14336])
def test_maps_of_one_token_equal_products_in_float64(width, dtype):
    torch.manual_seed(width)
    state, residual = torch.randn(1, 1, width).to(dtype), torch.randn(1, 1, 300).to(dtype)
    weights = [(torch.randn(count, width) / width**0.5).to(dtype) for count in (300, 70, 20)]
    biases = [torch.randn(len(weight)).to(dtype) for weight in weights]
    expected = [state.double() @ weight.double().T for weight in weights]
    on_gpu = [weight.cuda() for weight in weights]

    found = one_token.linear(state.cuda(), on_gpu, [bias.cuda() for bias in biases])
    for result, product, bias in zip(found, expected, biases, strict=True):
        assert relative_error(result.cpu().double(), product + bias.double()) <= BOUNDS[dtype]
    [added] = one_token.linear(state.cuda(), on_gpu[:1], [None], residual.cuda())
    assert relative_error(added.cpu().double(), expected[0] + residual.double()) <= BOUNDS[dtype]
    gated = one_token.gated(state.cuda(), on_gpu[0], on_gpu[0].flip(0).contiguous())
    silu = torch.nn.functional.silu(expected[0])
    assert relative_error(gated.cpu().double(), silu * expected[0].flip(-1)) <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_of_decoding_in_a_workspace_is_the_models_own(family, dtype, rng):
    model, prompt = make_model(family).to("cuda", dtype), random_prompt(rng)
    memory, workspace = InMemory.computed(model, prompt), Workspace(model, len(prompt.ids) + 4)
    prefill = fused_prefill(model, prompt, memory, get_selector("a3", ratio=1.0), workspace=workspace)
    token = int(prefill.logits.argmax())
    state = torch.tensor([token, len(prompt.ids), len(prompt.ids)], device="cuda")
    ids = torch.tensor([[*prompt.ids, token]], device="cuda")
    with torch.inference_mode():
        found = workspace._logits(state)
        own = model(ids).logits[:, -1]
        exact = model.float()(ids).logits[:, -1]
    rounding = relative_error(own, exact)  # of the model's own forward
    assert relative_error(found, exact) <= max(1e-5, 2 * rounding)


def test_weights_that_a_stream_writes_before_a_prefill_are_noticed(rng):
    """The check reads weights on a stream of its own, which waits for what was started before the prefill."""
    model, prompt = make_model("llama").cuda(), random_prompt(rng)
    memory, workspace = InMemory.computed(model, prompt), Workspace(model, len(prompt.ids))
    selector = get_selector("full_reuse")
    fused_prefill(model, prompt, memory, selector, workspace=workspace)
    weight = model.model.layers[-1].mlp.down_proj.weight.data
    torch.cuda._sleep(200_000_000)  # about 0.1 s, so that the host is far ahead of the write
    weight.mul_(2)
    with pytest.raises(ValueError, match="the model has changed since the workspace was made"):
        fused_prefill(model, prompt, memory, selector, workspace=workspace)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("tokens", [50, 3000, 20000])
def test_scores_are_the_sums_of_weights(tokens, power):
    torch.manual_seed(0)
    positions = torch.randperm(tokens)[:33].sort().values
    query, key = torch.randn(1, 8, 33, 64), torch.randn(1, 2, tokens, 64)
    found = attention_weights(query.cuda(), key.cuda(), positions.cuda(), 0.2, power)
    assert relative_error(found.cpu(), attention_weights(query, key, positions, 0.2, power)) <= 1e-4


@pytest.mark.parametrize("name", ["full_reuse", "probe", "a3", "epic"])
@pytest.mark.parametrize("lent", [False, True], ids=["own memory", "in a workspace"])
def test_copies_ahead_give_the_same_bits(rng, tmp_path, name, lent):
    """From the GPU, from pinned memory, from ordinary memory, from files that threads read, and from a buffer."""
    model, prompt = make_model("llama").cuda().bfloat16(), random_prompt(rng, chunks=(60, 70, 80))
    segments = {s: SegmentInMemory(*compute_segment(model, s)) for s in prompt.segments(1)}
    files = KVStore(tmp_path)
    InMemory(segments).into(files, model)
    selector = get_selector(name) if name == "full_reuse" else get_selector(name, ratio=0.2)
    ordinary = InMemory({s: SegmentInMemory(states.layers.clone(), states.scores) for s, states in segments.items()})
    assert not any(states.layers.is_pinned() for states in ordinary.segments.values())
    ahead = PrefetchingStore(files, Layout.of(model))
    ahead.prefetch(segments)
    assert ahead.open(Layout.of(model), prompt.segments(1)[-1]).layers.is_pinned()
    stores = files, ahead, ordinary, *(InMemory(segments).to(where) for where in ("pinned", "cuda"))
    workspace = Workspace(model, 300) if lent else None
    first, *others = (fused_prefill(model, prompt, store, selector, workspace=workspace).logits for store in stores)
    assert all(torch.equal(first, logits) for logits in others)


@pytest.mark.parametrize("format", CODECS)
@pytest.mark.parametrize("name", ["full_reuse", "probe", "a3"])
@pytest.mark.parametrize("lent", [False, True], ids=["own memory", "in a workspace"])
def test_files_unpacked_on_the_gpu_give_the_same_bits(rng, tmp_path, name, lent, format):
    """So do those in pinned memory: as if they were unpacked on the host."""
    model, prompt = make_model("llama").cuda().bfloat16(), random_prompt(rng, chunks=(60, 70, 80))
    store, layout = KVStore(tmp_path, format=format), Layout.of(model, format)
    precompute(model, [prompt], store)
    ahead = PrefetchingStore(store, layout)
    ahead.prefetch(prompt.segments(1))
    selector = get_selector(name) if name == "full_reuse" else get_selector(name, ratio=0.2)
    workspace = Workspace(model, 300) if lent else None
    opened = {segment: store.open(layout, segment) for segment in prompt.segments(1)}
    on_host = InMemory(
        {
            segment: SegmentInMemory(torch.stack([stored.layer(i) for i in range(layout.layers)]), stored.surprisal())
            for segment, stored in opened.items()
        }
    )
    stores = on_host, store, ahead
    first, *others = (fused_prefill(model, prompt, s, selector, workspace=workspace).logits for s in stores)
    assert all(torch.equal(first, logits) for logits in others)


@pytest.mark.parametrize("name", ["full_reuse", "a3"])
@pytest.mark.parametrize("lent", [False, True], ids=["own memory", "in a workspace"])
def test_layers_placed_without_the_kernel_are_the_same(rng, monkeypatch, name, lent):
    model, prompt = make_model("llama").cuda().bfloat16(), random_prompt(rng, chunks=(60, 70, 80))
    store = InMemory.computed(model, prompt).to("pinned")
    selector = get_selector(name) if name == "full_reuse" else get_selector(name, ratio=0.2)
    workspace = Workspace(model, 300) if lent else None
    expected = fused_prefill(model, prompt, store, selector).logits
    monkeypatch.setattr("ragkv.fusion.placement.kernels_run", lambda device: False)
    found = fused_prefill(model, prompt, store, selector, workspace=workspace).logits
    assert relative_error(found, expected) <= BOUNDS[torch.bfloat16]


@pytest.mark.parametrize("where", ["pinned", "cuda"])
def test_a_prefill_uses_the_memory_of_those_before_it_again(rng, where):
    """Own memory is allocated on the stream of the copies: prefill after prefill it is the same."""
    model, prompt = make_model("llama").cuda(), random_prompt(rng, chunks=(100, 120, 90))
    store, reserved = InMemory.computed(model, prompt).to(where), []
    for _ in range(40):
        fused_prefill(model, prompt, store, get_selector("a3", ratio=0.2))
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] <= reserved[9]


def test_an_eviction_frees_memory_layer_by_layer(rng):
    """The peak is below that of the same prefill without it by more than half of what it evicts."""
    model = make_model("llama", num_hidden_layers=24, num_key_value_heads=4, head_dim=64, max_position_embeddings=8192)
    model, prompt = model.cuda().bfloat16(), random_prompt(rng, chunks=(1000,) * 6)
    peaks, sizes = [], []
    for eviction in (None, get_eviction("streaming", capacity=600)):
        for _ in range(2):  # the first one compiles
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            prefill = fused_prefill(model, prompt, None, get_selector("full_prefill"), eviction=eviction)
            peak, size = torch.cuda.max_memory_allocated() - before, prefill.cache_bytes
            del prefill
        peaks.append(peak)
        sizes.append(size)
    assert peaks[0] - peaks[1] > (sizes[0] - sizes[1]) / 2


def test_two_runs_give_the_same_tokens(family, rng):
    model, prompt = make_model(family).cuda().bfloat16(), random_prompt(rng, chunks=(100, 200, 90))
    runs = [decode(model, fuse(model, prompt, "probe", ratio=0.2), max_new_tokens=12).ids for _ in range(2)]
    assert runs[0] == runs[1]
