"""The hand-over of fused prompts on a GPU: pinned buffers, and a worker that copies to them while the host goes on."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import pytest
import torch

from ragkv import KVStore, Prompt, fused_prefill, load_model, precompute
from ragkv.models.load import model_source
from ragkv.selectors import get_selector
from ragkv.serving.buffers import Buffers, KVShape
from ragkv.serving.mapped import MappedBuffers
from ragkv.serving.parts import Parts
from ragkv.serving.pinned import CudaPinning
from ragkv.serving.settings import Settings
from ragkv.serving.worker import Worker
from ragkv.serving.worker_client import Fused, WorkerClient

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

TOKENS = 512


def buffers_of(shape: KVShape) -> Buffers:
    return Buffers(2, shape.numbers(TOKENS) * shape.dtype.itemsize)


def test_pinned_buffers_hand_over_from_gpu_to_gpu():
    """Two mappings of the same buffer, as the worker and the engine have them."""
    shape = KVShape(layers=4, kv_heads=2, head_dim=64, dtype=torch.bfloat16)
    buffers = buffers_of(shape)
    path = buffers.take()
    written, read = (MappedBuffers(shape, CudaPinning()).keys_and_values(path, TOKENS) for _ in range(2))
    assert written.is_pinned()
    assert read.is_pinned()
    expected = torch.randn(written.shape, device="cuda", dtype=shape.dtype)
    written.copy_(expected, non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(read.to("cuda", non_blocking=True), expected)
    buffers.close()


def test_a_buffer_is_unpinned_when_its_file_was_removed():
    shape = KVShape(layers=1, kv_heads=1, head_dim=64, dtype=torch.float32)
    buffers = buffers_of(shape)
    paths = [buffers.take() for _ in range(2)]
    mapped = MappedBuffers(shape, CudaPinning())
    first = mapped.keys_and_values(paths[0], TOKENS)
    buffers.discard(paths[0])
    second = mapped.keys_and_values(paths[1], TOKENS)
    assert (first.is_pinned(), second.is_pinned()) == (False, True)
    buffers.close()


def test_memory_that_cannot_be_pinned_is_one_error_and_no_later_one():
    memory, pinning = torch.zeros(1 << 20), CudaPinning()
    pinning.pin(memory)
    with pytest.raises(MemoryError, match="could not be pinned"):
        pinning.pin(memory)  # a second time
    assert torch.ones(3, device="cuda").sum().item() == 3
    pinning.unpin(memory)
    assert not memory.is_pinned()


def test_a_worker_on_a_gpu_hands_over_what_it_computed():
    model, tokenizer = load_model("tiny-llama", device="cuda")
    prompt = Prompt([1, 5, 6], [list(range(10, 40)), list(range(50, 90))], [7, 8, 9])
    with TemporaryDirectory(prefix="ragkv-test-") as folder:
        settings = Settings(model=str(model_source("tiny-llama")), store=f"{folder}/kv", address=f"{folder}/socket")
        worker = Worker(model, tokenizer, settings)
        Thread(target=worker.run, daemon=True).start()
        while not Path(settings.address).exists():
            time.sleep(0.01)
        head_dim = model.model.layers[0].self_attn.head_dim
        shape = KVShape(model.config.num_hidden_layers, model.config.num_key_value_heads, head_dim, model.dtype)
        client = WorkerClient(settings.address, worker.identity, buffers_of(shape))
        mapped = MappedBuffers(shape, CudaPinning())
        store = KVStore(f"{folder}/other")
        precompute(model, [prompt], store)
        for ratio in (0.2, 0.5, 1.0):  # by turns in the same buffer
            answer = None
            while answer is None:
                answer = client.ask(str(ratio), Parts.of(prompt, "a3", ratio=ratio), prompt.ids)
                time.sleep(0.005)
            assert isinstance(answer, Fused), answer
            handed_over = mapped.keys_and_values(answer.buffer, answer.tokens).to("cuda", non_blocking=True)
            torch.cuda.synchronize()
            client.loaded(str(ratio))
            expected = fused_prefill(model, prompt, store, get_selector("a3", ratio=ratio)).cache
            for layer, (keys, values) in zip(expected.layers, handed_over, strict=True):
                torch.testing.assert_close(keys.transpose(0, 1)[None], layer.keys)
                torch.testing.assert_close(values.transpose(0, 1)[None], layer.values)
        client.close()
