"""The store: one file per segment, found by content, written completely or not at all, with every bit verified."""

import errno
import json
import os
from itertools import count
from pathlib import Path
from random import Random
from time import time

import pytest
import torch
from helpers import (
    SEGMENT,
    files,
    make_model,
    memory_store,
    random_ids,
    random_prompt,
    read_all,
    relative_error,
    shared_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkv import KVStore, Prompt, StoreError, fused_prefill, precompute
from ragkv.models.fingerprint import fingerprint
from ragkv.models.segment_pass import compute_segment
from ragkv.prompt import Segment
from ragkv.selectors import get_selector
from ragkv.store import Layout
from ragkv.store.files import Folder


def test_one_file_per_segment_and_shared_chunks_once(llama, rng, store):
    shared = random_ids(rng, 9)
    first = Prompt([1, 4], [shared, random_ids(rng, 5)], [9])
    second = Prompt([1, 4], [random_ids(rng, 3), shared], [8])
    done = precompute(llama, [first, second], store)
    assert (done.segments, done.shared, done.written) == (4, 2, 4)
    keys = store.keys()
    assert len(keys) == 4
    assert done.bytes == sum(store.folder.files.size(store.path(key)) for key in keys)
    again = precompute(llama, [second, first], store)
    assert (again.segments, again.shared, again.written, again.bytes) == (4, 2, 0, 0)
    assert store.keys() == keys == sorted(keys)


def test_the_same_inputs_give_the_same_bytes(rng, tmp_path):
    prompt = random_prompt(rng)
    for name in ("one", "other"):
        precompute(make_model("qwen3"), [prompt], KVStore(tmp_path / name))
    assert files(tmp_path / "one") == files(tmp_path / "other")
    assert len(files(tmp_path / "one")) == 4


def test_what_is_written_is_read(model, store):
    layout = Layout.of(model)
    layers, surprisal = compute_segment(model, SEGMENT)
    store.write(layout, SEGMENT, layers, surprisal)
    found = read_all(store, layout)
    assert torch.equal(found[0], surprisal)
    assert torch.equal(torch.stack(found[1:]), layers)
    assert store.check(layout, SEGMENT)


def test_one_layer_is_read_alone(llama, tmp_path):
    """Damage in another layer's bytes does not affect it, and is found when that layer is read."""
    store, layout = KVStore(tmp_path), Layout.of(llama)
    layers, surprisal = compute_segment(llama, SEGMENT)
    store.write(layout, SEGMENT, layers, surprisal)
    path = Path(store.path(layout.key(SEGMENT)))
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    start, _ = json.loads(data[8:begin])["layer.001"]["data_offsets"]
    data[begin + start] ^= 1
    path.write_bytes(data)
    stored = store.open(layout, SEGMENT)
    assert torch.equal(stored.layer(0), layers[0])
    assert torch.equal(stored.layer(2), layers[2])
    with pytest.raises(StoreError, match=r"layer\.001.*Run precompute again"):
        stored.layer(1)


def test_the_key_depends_on_everything_that_determines_the_values():
    model = make_model("llama")
    keys = [Layout.of(model).key(segment) for segment in (SEGMENT, Segment((5, 6, 7, 9), (1,)), Segment((5, 6, 7, 8)))]
    keys.append(Layout.of(model).key(Segment((6, 7, 8), (1, 5))))
    keys.append(Layout.of(make_model("llama", seed=1)).key(SEGMENT))
    rope = {"rope_type": "default", "rope_theta": 500.0}
    keys.append(Layout.of(make_model("llama", rope_parameters=rope)).key(SEGMENT))
    keys.append(Layout.of(make_model("llama", rms_norm_eps=1e-3)).key(SEGMENT))
    keys.append(Layout.of(make_model("llama").to(torch.bfloat16)).key(SEGMENT))
    assert len(set(keys)) == len(keys)
    assert Layout.of(make_model("llama")).key(SEGMENT) == keys[0]


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_single_changed_weight_is_another_model(which, place):
    model = make_model("qwen2", num_hidden_layers=1)
    before = fingerprint(model)
    weights = list(model.parameters())
    weight = weights[which % len(weights)].view(-1)
    place %= weight.numel()
    old = weight[place].clone()
    weight[place] = torch.nextafter(old, torch.tensor(9e9))
    assert fingerprint(model) != before
    weight[place] = old
    assert fingerprint(model) == before


def test_swapped_weights_are_another_model():
    model = make_model("llama")
    before = fingerprint(model)
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight[[0, 1]] = weight[[1, 0]].clone()
    assert fingerprint(model) != before


@pytest.fixture(scope="module")
def written():
    """A store, a segment's file in it, its bytes and tensors."""
    model, store = make_model("llama", num_hidden_layers=1), memory_store()
    layout = Layout.of(model)
    store.write(layout, SEGMENT, *compute_segment(model, SEGMENT))
    path = store.path(layout.key(SEGMENT))
    return store, layout, path, store.folder.files.cat_file(path), read_all(store, layout)


def test_no_flipped_bit_goes_unnoticed(written):
    """Every bit of the header, and a sample of those in the data."""
    store, layout, path, data, expected = written
    header = 8 * (8 + int.from_bytes(data[:8], "little"))
    random, noticed = Random(0), 0
    for bit in [*range(header), *random.sample(range(header, 8 * len(data)), 200)]:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        store.folder.files.pipe_file(path, bytes(damaged))
        assert_detected_or_harmless(store, layout, expected, bit)
        noticed += not store.check(layout, SEGMENT)
    store.folder.files.pipe_file(path, data)
    assert noticed > 0.99 * (header + 200)


def assert_detected_or_harmless(store, layout, expected, place):
    try:
        found = read_all(store, layout)
    except StoreError:
        return
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), f"unnoticed damage at {place}"


@settings(max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_noticed(written, share):
    store, layout, path, data, _ = written
    store.folder.files.pipe_file(path, data[: int(share * len(data))])
    try:
        with pytest.raises(StoreError, match="damaged"):
            read_all(store, layout)
        assert not store.check(layout, SEGMENT)
    finally:
        store.folder.files.pipe_file(path, data)


def test_a_file_too_long_is_noticed(written):
    store, layout, path, data, _ = written
    store.folder.files.pipe_file(path, data + b"\0")
    with pytest.raises(StoreError, match="too long"):
        store.open(layout, SEGMENT)
    store.folder.files.pipe_file(path, data)


@pytest.mark.parametrize("settled", [False, True], ids=["just written", "written before"])
def test_a_header_is_read_again_only_if_its_file_may_have_changed(tmp_path, monkeypatch, settled):
    store, layout, read = KVStore(tmp_path), Layout("model", 2, 2, 8, torch.float32), Folder.read
    store.write(layout, SEGMENT, torch.rand(2, 2, 2, 4, 8), torch.rand(4))
    path, reads = Path(store.path(layout.key(SEGMENT))), []
    monkeypatch.setattr(Folder, "read", lambda self, *arguments: reads.append(arguments) or read(self, *arguments))

    times = count(int(time()) + (-9999 if settled else 9999))  # every file's time is different, however fast the test

    def aged():
        os.utime(path, (modified := next(times), modified))

    aged()
    assert all(map(torch.equal, read_all(store, layout), read_all(store, layout)))
    assert len(reads) == (1 if settled else 2)
    whole = path.read_bytes()
    for damaged in (whole[:20] + bytes([whole[20] ^ 1]) + whole[21:], whole[:-1]):
        path.write_bytes(damaged)
        aged()
        with pytest.raises(StoreError):
            store.open(layout, SEGMENT)
    path.write_bytes(whole)
    aged()
    assert all(map(torch.equal, read_all(store, layout), read_all(store, layout)))
    path.unlink()
    with pytest.raises(KeyError):
        store.open(layout, SEGMENT)


def test_the_file_of_another_segment_is_refused(written):
    store, layout, _, data, _ = written
    for other in (Segment((5, 6, 7, 9), (1,)), Segment(SEGMENT.ids), Segment((5, 6, 7), (1,))):
        store.folder.files.pipe_file(store.path(layout.key(other)), data)
        with pytest.raises(StoreError, match="not what this model and chunk need"):
            store.open(layout, other)
        store.folder.files.rm_file(store.path(layout.key(other)))


def test_precompute_rewrites_damaged_files_only(llama, rng, tmp_path):
    prompt, store = random_prompt(rng), KVStore(tmp_path)
    precompute(llama, [prompt], store)
    before = files(tmp_path)
    stamps = {name: (tmp_path / name).stat().st_mtime_ns for name in before}
    victim = Path(store.path(Layout.of(llama).key(prompt.segments(1)[2]))).relative_to(tmp_path).as_posix()
    start = 8 + int.from_bytes(before[victim][:8], "little")
    (tmp_path / victim).write_bytes(
        before[victim][:start] + bytes([before[victim][start] ^ 1]) + before[victim][start + 1 :]
    )
    with pytest.raises(StoreError, match="is damaged"):
        fused_prefill(llama, prompt, store, get_selector("full_reuse"))
    assert precompute(llama, [prompt], store).written == 1
    assert files(tmp_path) == before
    assert all((tmp_path / name).stat().st_mtime_ns == stamps[name] for name in before if name != victim)


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_full_disk_leaves_what_was_stored(llama, rng, store, step, monkeypatch):
    layout, old, new = Layout.of(llama), random_prompt(rng), random_prompt(rng, prefix=None)
    precompute(llama, [old], store)
    keys = store.keys()

    def full(path, *_, **__):
        if step == "write":
            with store.folder.files.open(path, "wb") as file:
                file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        place = (store.folder.files, "pipe_file") if step == "write" else (store.folder, "_rename")
        patch.setattr(*place, full)
        with pytest.raises(StoreError, match=r"the disk is full.*make room"):
            precompute(llama, [new], store)
    assert store.keys() == keys
    assert not [path for path in store.folder.files.find(store.folder.root) if "partial" in path]
    assert all(store.check(layout, segment) for segment in old.segments(1))
    assert precompute(llama, [new], store).written == 3


@pytest.mark.parametrize("step", ["makedirs", "pipe_file"])
def test_a_read_only_store_says_what_to_do(llama, rng, store, step, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(store.folder.files, step, refuse)
    with pytest.raises(StoreError, match=r"Permission denied.*choose a folder that can be written to") as caught:
        precompute(llama, [random_prompt(rng)], store)
    assert store.url in str(caught.value)
    assert store.keys() == []


def test_a_read_only_store_can_be_read(llama, rng, store, monkeypatch):
    prompt = random_prompt(rng)
    precompute(llama, [prompt], store)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    for step in ("makedirs", "pipe_file", "mv"):
        monkeypatch.setattr(store.folder.files, step, refuse)
    assert precompute(llama, [prompt], store).written == 0
    fused_prefill(llama, prompt, store, get_selector("a3"))


def test_a_folder_and_memory_hold_the_same_bytes(llama, rng, tmp_path):
    prompt, folder, memory = random_prompt(rng), KVStore(tmp_path), memory_store()
    for store in (folder, memory):
        precompute(llama, [prompt], store)
    assert folder.keys() == memory.keys()
    keys = folder.keys()
    assert len(keys) == 4
    for key in keys:
        assert Path(folder.path(key)).read_bytes() == memory.folder.files.cat_file(memory.path(key))


def test_a_missing_segment_is_a_key_error(llama, store):
    assert not store.check(Layout.of(llama), SEGMENT)
    assert store.missing(Layout.of(llama), [SEGMENT]) == [SEGMENT]
    assert store.other_model(Layout.of(llama)) is None
    with pytest.raises(KeyError):
        store.open(Layout.of(llama), SEGMENT)


@pytest.mark.parametrize("context", [(), (1,), (1, 9, 4)])
def test_surprisal_is_minus_log_p(model, context):
    segment = Segment((5, 6, 7, 8, 150), context)
    _, surprisal = compute_segment(model, segment)
    logits = model(input_ids=torch.tensor([context + segment.ids])).logits[0].double()
    expected = [0.0]
    for i in range(1, len(segment.ids)):
        at = len(context) + i
        expected.append(-float(torch.log_softmax(logits[at - 1], -1)[segment.ids[i]]))
    assert surprisal[0] == 0
    assert relative_error(surprisal, torch.tensor(expected)) <= 1e-5


def sources(family, attention):
    """The modules that a layer's keys and values come out of, and what to do with their output."""
    if family == "phi3":
        return {
            "k": (attention.qkv_proj, lambda out: out[..., 64:96]),
            "v": (attention.qkv_proj, lambda out: out[..., 96:]),
        }
    heads_first = family == "gemma3_text"  # when its keys are normed
    return {
        "k": (
            getattr(attention, "k_norm", None) or attention.k_proj,
            lambda out: out.transpose(1, 2) if heads_first else out,
        ),
        "v": (attention.v_proj, lambda out: out),
    }


@pytest.mark.parametrize("context", [(), (1,), (1, 9, 4)])
def test_keys_and_values_are_those_of_the_models_own_forward(family, context):
    """Taken with hooks before rotation, and after the norm in models that have one."""
    model, segment, taken = shared_model(family), Segment((5, 6, 7, 8, 150), context), {}
    handles = []
    for index, layer in enumerate(model.model.layers):
        for name, (module, part) in sources(family, layer.self_attn).items():
            keep = lambda _, __, out, place=(index, name), part=part: taken.__setitem__(place, part(out))  # noqa: E731
            handles.append(module.register_forward_hook(keep))
    try:
        model(input_ids=torch.tensor([context + segment.ids]))
    finally:
        for handle in handles:
            handle.remove()
    layers, _ = compute_segment(model, segment)
    assert len(taken) == 2 * len(layers)
    for (index, name), out in taken.items():
        states = out.reshape(1, -1, 2, 16)[0, len(context) :].transpose(0, 1)  # (kv_heads, tokens, head_dim)
        assert relative_error(layers[index, "kv".index(name)], states) <= 1e-5


def test_precompute_shows_progress_only_on_request(llama, rng, capsys):
    prompt = random_prompt(rng)
    precompute(llama, [prompt], memory_store())
    assert capsys.readouterr().err == ""
    precompute(llama, [prompt], memory_store(), progress=True)
    assert "4/4" in capsys.readouterr().err
