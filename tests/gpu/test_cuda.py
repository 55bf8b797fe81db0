"""The core on a GPU: the same numbers as on a CPU, and as the model's own forward there."""

from random import Random

import pytest
import torch
from helpers import RATIO_SELECTORS, fuse, make_model, memory_store, random_prompt, relative_error

from ragkv import decode, fused_prefill, generate, load_model, precompute
from ragkv.benchmarks.ruler import Ruler
from ragkv.experiment.items import make_item
from ragkv.experiment.profile import Profile
from ragkv.fusion.workspace import Workspace
from ragkv.loading.memory import InMemory
from ragkv.loading.pinned import pin, unpin
from ragkv.models.pass_shape import PassShape
from ragkv.models.segment_pass import compute_segment, compute_segments
from ragkv.selectors import get_selector

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)  # here, so that hundreds of tests are not collected first

GPUS = torch.cuda.device_count()
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@torch.inference_mode()
def plain(model, prompt):
    return model(torch.tensor([prompt.ids], device=model.device)).logits[:, -1]


@pytest.mark.parametrize("name", RATIO_SELECTORS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_recomputing_everything_is_a_full_prefill(family, name, dtype):
    model, prompt = make_model(family).to("cuda", dtype), random_prompt(Random(0))
    found = fuse(model, prompt, name, ratio=1.0).logits
    assert found.device.type == "cuda"
    assert relative_error(found, plain(model, prompt)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["a3", "cacheblend", "epic", "surprisal", "a3_blend"])
def test_partial_recomputation_is_as_on_the_cpu(family, name):
    prompt = random_prompt(Random(1))
    here, there = (fuse(make_model(family).to(device), prompt, name, ratio=0.3) for device in ("cpu", "cuda"))
    assert torch.equal(here.selected, there.selected)
    assert relative_error(there.logits.cpu(), here.logits) <= 1e-4


def test_a_store_written_on_a_gpu_serves_a_cpu(family):
    store, prompt = memory_store(), random_prompt(Random(2))
    precompute(make_model(family).to("cuda"), [prompt], store)
    found = fused_prefill(make_model(family), prompt, store, get_selector("full_reuse"))
    assert relative_error(found.logits, fuse(make_model(family), prompt, "full_reuse").logits) <= 1e-4


def test_memory_that_cannot_be_pinned_leaves_no_error_to_the_next_kernel():
    memory = torch.ones(2**20, dtype=torch.uint8)
    assert pin(memory.data_ptr(), memory.nbytes) is None
    try:
        assert pin(memory.data_ptr(), memory.nbytes) is not None  # it is pinned already
        assert int(memory.cuda().sum(dtype=torch.int64)) == memory.nbytes
    finally:
        unpin(memory.data_ptr())


def test_decoding_is_transformers_own(family):
    model, prompt = make_model(family).cuda(), random_prompt(Random(3))
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt.ids], device="cuda")
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    assert (
        decode(model, fuse(model, prompt, "a3", ratio=1.0), max_new_tokens=8).ids
        == expected[0, ids.shape[1] :].tolist()
    )


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-mistral", "tiny-qwen"])
def test_the_embedded_models_answer_in_bfloat16(name, tmp_path):
    model, tokenizer = load_model(name)
    assert (model.device.type, model.dtype) == ("cuda", torch.bfloat16)
    ruler = Ruler(source="tiny", tasks={"niah_multikey_2": {"prompts": 10, "lengths": [1024]}})
    profile = Profile(
        models=[name], benchmarks={"ruler": ruler.model_dump()}, methods=[{"selector": "a3"}], chunk_tokens=64
    )
    task, store, score = ruler.task("niah_multikey_2"), memory_store(), 0.0
    for example in ruler.examples("niah_multikey_2", tokenizer, tmp_path)[0]:
        item = make_item(tokenizer, example, task, profile)
        precompute(model, [item.prompt], store)
        prefill = fused_prefill(model, item.prompt, store, get_selector("a3", ratio=0.15))
        said = generate(model, tokenizer, item.prompt, prefill, max_new_tokens=8)
        score += task.scores(said, item.answers, ())["string_match"]
    assert score >= 8


@pytest.fixture
def split(tmp_path, family):
    """A model and the same one with its last layer on a second GPU."""
    model = make_model(family)
    model.save_pretrained(tmp_path)
    last = len(model.model.layers) - 1
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 1, "lm_head": 1}
    places |= {f"model.layers.{i}": int(i == last) for i in range(last + 1)}
    return model, type(model).from_pretrained(tmp_path, device_map=places, dtype=torch.float32)


@pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")
def test_layers_over_two_gpus_give_the_same(split):
    prompt = random_prompt(Random(4))
    here, there = (fuse(m, prompt, "a3", ratio=0.3) for m in split)
    assert relative_error(there.logits.cpu(), here.logits) <= 1e-4
    assert len(decode(split[1], there, max_new_tokens=4).ids) > 0


@pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", ["full_reuse", "probe", "a3"])
def test_a_workspace_over_two_gpus_gives_the_same(split, name):
    """From memory that is pinned, from each of the GPUs, and from files."""
    (here, there), prompt, files = split, random_prompt(Random(5)), memory_store()
    selector = get_selector(name) if name == "full_reuse" else get_selector(name, ratio=0.3)
    precompute(there, [prompt], files)
    memory, workspace = InMemory.computed(there, prompt), Workspace(there, len(prompt.ids) + 8)
    expected = fused_prefill(here, prompt, InMemory.computed(here, prompt), selector)
    for store in (
        files,
        *(memory.to(where) for where in ("pinned", *map(str, dict.fromkeys(workspace.memory.devices)))),
    ):
        found = fused_prefill(there, prompt, store, selector, workspace=workspace)
        assert torch.equal(found.selected, expected.selected)
        assert relative_error(found.logits.cpu(), expected.logits) <= 1e-4


@pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")
def test_segments_that_share_a_pass_over_two_gpus_are_the_same(split):
    here, there = split
    segments = random_prompt(Random(6), chunks=(30, 25, 17)).segments(1)[1:]
    shape = PassShape.shared(segments[0], 400)
    for segment, (layers, surprisal) in zip(segments, compute_segments(there, segments, shape), strict=True):
        expected_layers, expected_surprisal = compute_segment(here, segment)
        assert relative_error(layers, expected_layers) <= 1e-4
        assert relative_error(surprisal, expected_surprisal) <= 1e-4
