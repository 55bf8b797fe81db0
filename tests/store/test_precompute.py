"""Precompute in shared passes: the same as one by one, whichever segments are computed together."""

import errno
from pathlib import Path

import pytest
import torch
from adapters import Int8Linear, Lora, replace
from helpers import FAMILIES, files, make_model, memory_store, random_ids, read_all, relative_error, shared_model
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkv import KVStore, Prompt, StoreError, precompute
from ragkv.contexts import LearnedContext
from ragkv.models.fingerprint import fingerprint
from ragkv.models.segment_pass import compute_segment, compute_segments
from ragkv.prompt.similar import behind_similar
from ragkv.shards import Shard
from ragkv.store import Layout
from ragkv.store import precompute as module

BATCH = 200  # tokens


def learned_context(model, seed: int) -> LearnedContext:
    config = model.config
    shape = (config.num_hidden_layers, 2, config.num_key_value_heads, 3, config.head_dim)
    return LearnedContext(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), fingerprint(model))


def placed(prompt: Prompt, context: str, model) -> Prompt:
    """The prompt with its chunks behind a kind of context."""
    if context == "prefix":
        return prompt.behind_prefix()
    if context == "similar":
        return behind_similar(prompt, 2, 1)
    if context.startswith("learned"):
        return prompt.behind(learned_context(model, int(context[-1])))
    return prompt


CONTEXTS = ("bos", "prefix", "similar", "learned 0", "learned 1")


@st.composite
def prompts(draw):
    """Prompts with chunks of many lengths, behind all kinds of contexts."""
    rng = draw(st.randoms(use_true_random=False))
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=9))
    prompt = Prompt([1, *random_ids(rng, 4)], [random_ids(rng, length) for length in lengths], [9])
    return [(prompt, context) for context in draw(st.sets(st.sampled_from(CONTEXTS), min_size=1))]


@settings(max_examples=25)
@given(prompts(), st.sampled_from(FAMILIES), st.integers(0, 400))
def test_segments_that_share_passes_are_those_computed_one_by_one(pairs, family, batch_tokens):
    model, store = shared_model(family), memory_store()
    layout = Layout.of(model)
    needed = [placed(prompt, context, model) for prompt, context in pairs]
    done = precompute(model, needed, store, batch_tokens=batch_tokens)
    segments = {segment for prompt in needed for segment in prompt.segments(1)}
    assert done.written == done.segments == len(segments) == len(store.keys())
    for segment in segments:
        layers, surprisal = compute_segment(model, segment)
        found_surprisal, *found = read_all(store, layout, segment)
        assert relative_error(torch.stack(found), layers) <= 1e-5
        assert (found_surprisal - surprisal).abs().max() <= 1e-4


@settings(max_examples=15)
@given(prompts(), st.randoms(use_true_random=False), st.data())
def test_what_is_stored_depends_neither_on_the_order_nor_on_what_is_stored_already(pairs, rng, data):
    """All bits are the same: a segment's pass has the same size whatever else is in it."""
    model, whole, parts = shared_model("llama"), memory_store(), memory_store()
    needed = [placed(prompt, context, model) for prompt, context in pairs]
    precompute(model, needed, whole, batch_tokens=BATCH)
    single = [
        Prompt([], [segment.ids], [9], [segment.context], segment.learned)
        for prompt in needed
        for segment in prompt.segments(1)
    ]
    rng.shuffle(single)
    first = data.draw(st.integers(0, len(single)))
    precompute(model, single[:first], parts, batch_tokens=BATCH)
    for prompt in single[first : first + 2]:
        precompute(model, [prompt], parts, batch_tokens=BATCH)
    for shard in Shard.all(2):
        precompute(model, single, parts, shard=shard, batch_tokens=BATCH)
    assert contents(parts) == contents(whole)


def contents(store: KVStore) -> dict[str, bytes]:
    """The bytes of every segment's file, by key."""
    keys = store.keys()
    return {key: store.segments.read(key) for key in keys}


def test_full_passes_are_computed_and_the_rest_once(llama, rng, monkeypatch):
    sizes = []

    def compute(model, segments, shape):
        sizes.append((shape.rows, len(segments)))
        return compute_segments(model, segments, shape)

    monkeypatch.setattr(module, "compute_segments", compute)
    chunks = [random_ids(rng, 15) for _ in range(10)]
    precompute(llama, [Prompt([1], chunks, [9])], memory_store(), batch_tokens=4 * 17)
    assert sorted(sizes) == [(4, 1), (4, 2), (4, 4), (4, 4)]  # BOS is a segment too


def test_on_a_cpu_each_segment_has_a_pass_of_its_own(llama, rng, tmp_path):
    """So what is stored there is bit by bit what it was before passes were shared."""
    prompt = Prompt([1], [random_ids(rng, 15) for _ in range(5)], [9])
    precompute(llama, [prompt], KVStore(tmp_path / "default"))
    precompute(llama, [prompt], KVStore(tmp_path / "alone"), batch_tokens=0)
    alone = files(tmp_path / "alone")
    assert files(tmp_path / "default") == alone
    assert module.most_tokens(llama) == 0


@pytest.mark.parametrize("kind", [None, Lora, Int8Linear])
def test_on_gpus_segments_share_passes_unless_a_projection_was_replaced(kind, monkeypatch):
    model = make_model("llama")
    if kind is not None:
        replace(model, "o_proj", kind)
    fingerprint(model)  # reads the model's state, while it is where it seems to be
    monkeypatch.setattr(module.decoder, "devices", lambda model: [torch.device("cuda", 0), torch.device("cuda", 1)])
    assert module.most_tokens(model) == (module.MOST_TOKENS if kind is None else 0)


def test_large_models_share_passes_of_fewer_tokens(llama, monkeypatch):
    monkeypatch.setattr(module.decoder, "devices", lambda model: [torch.device("cuda")])
    numbers = sum(weight.numel() for layer in llama.model.layers for weight in layer.parameters())
    monkeypatch.setattr(module, "MOST_WORK", 300 * 4 * numbers + 1)  # in float32
    assert module.most_tokens(llama) == 300


@pytest.mark.parametrize("stopped", [0, 1, 5])
def test_a_failure_in_the_middle_of_a_pass_leaves_whole_segments_only(llama, rng, tmp_path, monkeypatch, stopped):
    prompt = Prompt([1], [random_ids(rng, 15) for _ in range(8)], [9])
    layout, store = Layout.of(llama), KVStore(tmp_path / "stopped")
    precompute(llama, [prompt], KVStore(tmp_path / "undisturbed"), batch_tokens=BATCH)
    write, writes = store.segments.write, []

    def fail(key, data):
        if len(writes) == stopped:
            raise StoreError("the disk is full")
        writes.append(key)
        write(key, data)

    with monkeypatch.context() as patch:
        patch.setattr(store.segments, "write", fail)
        with pytest.raises(StoreError, match="the disk is full"):
            precompute(llama, [prompt], store, batch_tokens=BATCH)
    assert store.keys() == sorted(writes)
    assert len(writes) == stopped
    stored = [segment for segment in prompt.segments(1) if layout.key(segment) in writes]
    assert all(store.check(layout, segment) for segment in stored)
    assert precompute(llama, [prompt], store, batch_tokens=BATCH).written == 9 - stopped
    assert files(tmp_path / "stopped") == files(tmp_path / "undisturbed")


def test_a_disk_that_fills_up_within_a_pass_leaves_no_unfinished_file(llama, rng, tmp_path, monkeypatch):
    prompt, store = Prompt([1], [random_ids(rng, 15) for _ in range(8)], [9]), KVStore(tmp_path)
    pipe, written = store.folder.files.pipe_file, []

    def full(path, data, **options):
        if len(written) == 3:
            Path(path).write_bytes(data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        pipe(path, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store.folder.files, "pipe_file", full)
        with pytest.raises(StoreError, match="the disk is full"):
            precompute(llama, [prompt], store, batch_tokens=BATCH)
    assert len(files(tmp_path)) == len(store.keys()) == 3
