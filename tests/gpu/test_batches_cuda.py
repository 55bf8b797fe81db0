"""Prompts that are prefilled together on a GPU give what each gives there on its own."""

from random import Random

import pytest
import torch
from helpers import assert_caches_agree, make_model, random_prompt, relative_error

from ragkv import decode, fused_prefill, fused_prefills
from ragkv.fusion.workspace import Workspace
from ragkv.kernels.attention import position_causal
from ragkv.loading.memory import InMemory
from ragkv.models.attention import sdpa
from ragkv.selectors import get_selector

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)  # here, so that hundreds of tests are not collected first

SELECTORS = {
    "full_prefill": ("full_prefill", {}),
    "full_reuse": ("full_reuse", {}),
    "epic": ("epic", {"ratio": 0.1}),
    "a3": ("a3", {"ratio": 0.1}),
    "a3 on stored keys": ("a3", {"ratio": 0.1, "keys": "stored", "layer": 2}),
    "cacheblend": ("cacheblend", {"ratio": 0.1}),
    "probe": ("probe", {"ratio": 0.1}),
}
LENGTHS = ((60, 190, 80), (300,), (5,), (), (33, 129))  # of the chunks of prompts


def stored(model, prompts):
    store = InMemory({})
    for prompt in prompts:
        store.segments |= InMemory.computed(model, prompt).segments
    return store


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize(
    ("rows", "where"),
    [(None, "cuda"), (None, "cpu"), (0, "pinned"), (2048, "cuda"), (2048, "pinned")],
    ids=[
        "own memory",
        "own memory from the host",
        "no graphs from pinned memory",
        "graphs",
        "graphs from pinned memory",
    ],
)
@pytest.mark.parametrize("family", ["llama", "smollm3"])
def test_a_batch_gives_what_each_prompt_gives(family, name, rows, where):
    """Twice in the same workspace; every cache can be decoded from."""
    rng = Random(0)
    model = make_model(family).cuda()
    model.generation_config.eos_token_id = None
    prompts = [random_prompt(rng, chunks, 3 + i, None if i == 2 else 4) for i, chunks in enumerate(LENGTHS)]
    plain = stored(model, prompts)
    store = plain.to(where)
    name, options = SELECTORS[name]
    selector = get_selector(name, **options)
    alone = [fused_prefill(model, prompt, plain, selector) for prompt in prompts]
    workspace = None if rows is None else Workspace(model, sum(len(prompt.ids) for prompt in prompts), rows=rows)
    for _ in range(2):
        together = fused_prefills(model, prompts, store, selector, workspace=workspace)
        for found, expected in zip(together, alone, strict=True):
            assert torch.equal(found.selected, expected.selected)
            assert relative_error(found.logits, expected.logits) <= 1e-4
            assert_caches_agree(found.cache, expected.cache, 1e-4)
            assert decode(model, found, max_new_tokens=4).ids == decode(model, expected, max_new_tokens=4).ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("asked", [1, 30, 230])
def test_attention_over_keys_that_lie_end_to_end(dtype, asked):
    """One launch over 16 prompts, against PyTorch's attention of each in float32."""
    torch.manual_seed(asked)
    lengths = [1000 + 37 * number for number in range(16)]
    query = torch.randn(1, 32, 16 * asked, 128, device="cuda").to(dtype)
    key, value = torch.randn(2, 1, 8, sum(lengths), 128, device="cuda").to(dtype)
    slots, firsts, expected, start = [], [], [], 0
    for number, length in enumerate(lengths):
        positions = torch.randperm(length, device="cuda")[:asked].sort().values
        queries = query[:, :, number * asked : (number + 1) * asked].float()
        keys, values = (states[:, :, start : start + length].float() for states in (key, value))
        expected.append(sdpa(queries, keys, values, positions, 0.11))
        slots.append(positions + start)
        firsts.append(torch.full_like(positions, start))
        start += length
    found = position_causal(query, key, value, torch.cat(slots), 0.11, firsts=torch.cat(firsts))
    assert relative_error(found, torch.cat(expected, dim=2)) <= (1e-4 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("name", ["streaming", "snapkv"])
def test_decoding_behind_an_eviction_goes_on_in_the_workspace(family, name):
    from ragkv.eviction import get_eviction

    model, prompt = make_model(family).cuda(), random_prompt(Random(3), chunks=(60, 190, 80))
    model.generation_config.eos_token_id = None
    store, eviction = stored(model, [prompt]), get_eviction(name, capacity_ratio=0.4)
    workspace, selector = Workspace(model, 400), get_selector("epic", ratio=0.2)
    expected = fused_prefill(model, prompt, store, selector, eviction=eviction)
    found = fused_prefill(model, prompt, store, selector, eviction=eviction, workspace=workspace)
    assert found.workspace is workspace
    for _ in range(2):
        assert decode(model, found, max_new_tokens=12).ids == decode(model, expected, max_new_tokens=12).ids
