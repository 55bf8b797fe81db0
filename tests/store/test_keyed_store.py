"""Stores with a key: checksums that only those can make who know it."""

import json
import struct
from pathlib import Path

import pytest
import torch
from helpers import random_prompt
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import KEYS, LAYOUT, SEGMENTS, fill, intact
from typer.testing import CliRunner

from ragkv import KVStore, StoreError, fused_prefill, precompute
from ragkv.cli import app
from ragkv.loading.readers import WorkerReader
from ragkv.loading.workers import ReadWorkers
from ragkv.selectors import get_selector
from ragkv.store import Cache
from ragkv.store.checksums import Checksums
from ragkv.store.collect import collect
from ragkv.store.errors import WrongKeyError
from ragkv.store.verify import verify

ONE, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def with_key(monkeypatch):
    """Opens a store with this key in the environment."""

    def opening(url, key, **options):
        if key is None:
            monkeypatch.delenv("RAGKV_STORE_KEY", raising=False)
        else:
            monkeypatch.setenv("RAGKV_STORE_KEY", key)
        return KVStore(url, **options)

    return opening


REASONS = {
    (ONE, OTHER): "written with another key",
    (ONE, None): "written with a key .* set RAGKV_STORE_KEY to that key",
    (None, ONE): "written without a key, and RAGKV_STORE_KEY is set",
}


@pytest.mark.parametrize(("written", "read"), REASONS)
def test_a_store_of_another_key_is_refused(with_key, tmp_path, written, read):
    fill(with_key(tmp_path, written))
    assert intact(with_key(tmp_path, written)) == set(range(5))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    store = with_key(tmp_path, read)
    operations = [
        lambda: store.open(LAYOUT, SEGMENTS[0]),
        lambda: store.check(LAYOUT, SEGMENTS[0]),
        lambda: fill(store),
        lambda: verify(store),
    ]
    for operation in operations:
        with pytest.raises(WrongKeyError, match=REASONS[written, read]):
            operation()
    result = CliRunner().invoke(app, ["store", "verify", str(tmp_path)])
    assert result.exit_code == 2
    assert "RAGKV_STORE_KEY" in result.output
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("written", "read"), REASONS)
def test_segments_are_never_added_to_a_store_of_another_key(with_key, tmp_path, llama, rng, written, read):
    fill(with_key(tmp_path, written))
    with pytest.raises(WrongKeyError, match=REASONS[written, read]):
        precompute(llama, [random_prompt(rng)], with_key(tmp_path, read))
    assert len(with_key(tmp_path, written).keys()) == 5


def test_a_store_with_a_key_gives_the_same_answers(with_key, tmp_path, model, rng):
    prompt, selector = random_prompt(rng), get_selector("a3", ratio=0.2)
    logits = []
    for key in (None, ONE):
        store = with_key(tmp_path / str(key), key)
        precompute(model, [prompt], store)
        assert precompute(model, [prompt], store).written == 0
        assert verify(store).whole
        logits.append(fused_prefill(model, prompt, store, selector).logits)
    assert torch.equal(*logits)
    store = with_key(tmp_path / ONE, ONE)
    assert len(collect(store, 0).evicted) == 4
    precompute(model, [prompt], store)


def test_workers_check_a_store_with_a_key(with_key, tmp_path):
    store, workers = with_key(tmp_path, ONE), ReadWorkers()
    workers.count = 1
    fill(store)
    segments = [store.open(LAYOUT, segment) for segment in SEGMENTS]
    reader = WorkerReader(segments, [range(2)], workers)
    reader.copy_next(target := torch.zeros(reader.size, dtype=torch.uint8))
    expected = [segment.layer(i).flatten() for segment in segments for i in range(2)]
    assert torch.equal(target.view(torch.float32), torch.cat(expected))
    layer = segments[0].layer_range(0)
    assert workers.wait(workers.submit([(layer, 0)]))
    assert not workers.wait(workers.submit([(segments[1].layer_range(0)._replace(path=layer.path), 0)]))
    assert ONE not in json.dumps(layer)  # workers are not told the key itself


def test_a_cache_of_another_key_is_not_used(with_key, tmp_path):
    fill(with_key(tmp_path / "one", ONE))
    fill(with_key(tmp_path / "other", OTHER))
    for name, key in (("one", ONE), ("other", OTHER), ("one", ONE)):
        assert intact(with_key(tmp_path / name, key, cache=Cache(tmp_path / "cache", 10**6))) == set(range(5))


def header_of(data):
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def file_of(header, body):
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + body


def forged(data, donor):
    """What somebody without the key might write in place of a file, by what they do; a donor is another whole file."""
    header, body = header_of(data)
    donor_header, donor_body = header_of(donor)
    metadata = json.loads(header["__metadata__"]["ragkv"])
    checksums = metadata["checksums"]
    donor_checksums = json.loads(donor_header["__metadata__"]["ragkv"])["checksums"]

    def with_metadata(changes, entries=header, content=body):
        return file_of(entries | {"__metadata__": {"ragkv": json.dumps(metadata | changes)}}, content)

    def plain(name):
        entry = header[name]
        return Checksums().of("", name, entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])

    changed = bytearray(body)
    changed[3] ^= 1
    unkeyed = {"checksums": {name: plain(name) for name in checksums}}
    first, second = "layer.000", "layer.001"
    swapped = header | {first: header[second], second: header[first]}
    swapped_checksums = {"checksums": checksums | {first: checksums[second], second: checksums[first]}}
    start, stop = header[first]["data_offsets"]
    doubled = body[:stop] + body[start:stop] + body[2 * stop - start :]
    return {
        "changed bytes": with_metadata({}, content=bytes(changed)),
        "checksums without a key": with_metadata(unkeyed),
        "no key either": with_metadata(unkeyed | {"key": None}),
        "another's tensors and checksums": with_metadata({"checksums": donor_checksums}, content=donor_body),
        "another's file": donor,
        "layers swapped": with_metadata({}, swapped),
        "layers and checksums swapped": with_metadata(swapped_checksums, swapped),
        "one layer twice": with_metadata({}, content=doubled),
        "no checksums": with_metadata({"checksums": dict.fromkeys(checksums, "")}),
    }


FORGERIES = [
    "changed bytes",
    "checksums without a key",
    "no key either",
    "another's tensors and checksums",
    "another's file",
    "layers swapped",
    "layers and checksums swapped",
    "one layer twice",
    "no checksums",
]


@pytest.mark.parametrize("name", FORGERIES)
def test_nothing_made_without_the_key_is_used(with_key, tmp_path, name):
    store = with_key(tmp_path, ONE)
    fill(store)
    path, donor = (Path(store.path(key)) for key in KEYS[:2])
    forgeries = forged(path.read_bytes(), donor.read_bytes())
    assert list(forgeries) == FORGERIES
    path.write_bytes(forgeries[name])
    with pytest.raises(StoreError):
        stored = store.open(LAYOUT, SEGMENTS[0])
        stored.check()
    assert intact_others(store)


def intact_others(store):
    return all((store.open(LAYOUT, SEGMENTS[n]).layer(0) == n).all() for n in range(1, 5))


@settings(max_examples=200)
@given(data=st.data())
def test_no_flipped_bit_goes_unnoticed_with_a_key(tmp_path_factory, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGKV_STORE_KEY", ONE)
        store = KVStore(tmp_path_factory.mktemp("kv"))
    fill(store)
    path = Path(store.path(KEYS[0]))
    whole = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    path.write_bytes(whole)
    try:
        stored = store.open(LAYOUT, SEGMENTS[0])
        assert (stored.layer(0) == 0).all() and (stored.layer(1) == 10).all()
    except StoreError:
        pass


@pytest.mark.parametrize("key", ["", "   ", "short", "x" * 15])
def test_a_key_that_is_no_secret_is_refused(with_key, tmp_path, key):
    with pytest.raises(ValueError, match=r"RAGKV_STORE_KEY has .* characters, fewer than 16"):
        with_key(tmp_path, key)


def test_files_without_a_key_are_as_before(with_key, tmp_path):
    """Their metadata has no key, their checksums are XXH3."""
    store = with_key(tmp_path, None)
    fill(store)
    header, _ = header_of(Path(store.path(KEYS[0])).read_bytes())
    metadata = json.loads(header["__metadata__"]["ragkv"])
    assert "key" not in metadata
    assert all(len(checksum) == 32 for checksum in metadata["checksums"].values())
    assert not (tmp_path / "key").exists()


def test_the_key_is_not_in_the_store(with_key, tmp_path):
    fill(with_key(tmp_path, ONE))
    assert not any(ONE.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
