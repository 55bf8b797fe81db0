"""A full GPU is explained: what needed how much, and what to do."""

import pytest
import torch
from helpers import memory_store, random_prompt

from ragkv import fused_prefill, load_model, precompute
from ragkv.models.out_of_memory import explained
from ragkv.selectors import get_selector

FULL = "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 79.1 GiB of which ..."


def full(*given, **options):
    raise torch.OutOfMemoryError(FULL)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 10**8, 80 * 10**9))


def test_the_message_has_what_how_much_and_what_to_do(gpu):
    with (
        pytest.raises(
            torch.OutOfMemoryError, match=r"^a thing needs 1.50 GiB at once, and cuda has 0.3 of its 80.0 GB"
        ),
        explained("a thing", torch.device("cuda"), "take less"),
    ):
        full()


def test_other_errors_pass(gpu):
    with pytest.raises(KeyError), explained("a thing", torch.device("cuda"), "take less"):
        raise KeyError


def test_a_prefill_names_its_length(llama, rng, gpu, monkeypatch):
    prompt, store = random_prompt(rng), memory_store()
    precompute(llama, [prompt], store)
    monkeypatch.setattr("ragkv.models.decoder.finish", full)
    with pytest.raises(torch.OutOfMemoryError, match=f"a prefill of {len(prompt.ids)} tokens needs 1.50"):
        fused_prefill(llama, prompt, store, get_selector("epic"))


def test_loading_names_the_model(gpu, monkeypatch):
    monkeypatch.setattr("transformers.PreTrainedModel.to", full)
    with pytest.raises(torch.OutOfMemoryError, match=r"the model 'tiny-llama' needs 1.50 .* by device_map"):
        load_model("tiny-llama", device="cpu")
