"""Files that somebody made up: clear errors, and nothing else that they bring about."""

import json
import os
import re
import threading
import time
from pathlib import Path

import pytest
from stores import KEYS, LAYOUT, SEGMENTS, fill, intact
from typer.testing import CliRunner

from ragkv import KVStore, StoreError
from ragkv.cli import app
from ragkv.store import Manifest
from ragkv.store.collect import collect
from ragkv.store.errors import WrongKeyError
from ragkv.store.verify import verify


@pytest.fixture
def store(tmp_path):
    store = KVStore(tmp_path)
    fill(store)
    return store


def change_header(path, change):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + size :])


def run(command, store):
    """The output of a command, which ends as a command should."""
    result = CliRunner().invoke(app, ["store", command, store.url], color=True)
    assert result.exit_code in (0, 1, 2)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output


OFFSETS = [[0.0, 8.0], [True, 4], [-4, 3], [10**30, 10**31], ["0", "4"], [5, 1], [1], None, 0, {}]
SHAPES = ["x", ["x"], [-1], {"0": 1}, [[1]], None, [1.5], 3, []]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("data_offsets", value) for value in OFFSETS),
        *(("shape", value) for value in SHAPES),
        ("dtype", 3),
        ("dtype", []),
    ],
    ids=str,
)
def test_headers_that_make_no_sense(store, field, value):
    change_header(Path(store.path(KEYS[0])), lambda header: header["surprisal"].__setitem__(field, value))
    with pytest.raises(StoreError, match="is damaged"):
        store.open(LAYOUT, SEGMENTS[0])
    assert list(verify(store).damaged) == [KEYS[0]]
    assert not store.check(LAYOUT, SEGMENTS[0])
    for command in ("ls", "stats", "verify"):
        run(command, store)


def test_deep_nesting(store, tmp_path):
    nested = b"[" * 200_000
    Path(store.path(KEYS[0])).write_bytes(len(nested).to_bytes(8, "little") + nested)
    with pytest.raises(StoreError, match="is damaged"):
        store.open(LAYOUT, SEGMENTS[0])
    store.manifests.write("p", Manifest.of({"t": KEYS}))
    (tmp_path / "manifests/p.json").write_bytes(nested)
    for operation in (verify, lambda store: collect(store, 0)):
        with pytest.raises(StoreError, match=r"manifests/p\.json is damaged"):
            operation(store)


def test_a_header_of_gigabytes_is_not_read(store):
    path = Path(store.path(KEYS[0]))
    with path.open("r+b") as file:
        file.write((1 << 32).to_bytes(8, "little"))
        file.truncate(1 << 33)  # no blocks are used
    with pytest.raises(StoreError, match="header's length makes no sense"):
        store.open(LAYOUT, SEGMENTS[0])


@pytest.mark.parametrize("at", [1e300, float("inf"), float("nan"), -1e300, None, "now", [1]], ids=str)
def test_times_of_use_that_make_no_sense(store, at):
    store.manifests.write("p", Manifest.of({"t": KEYS[:1]}))
    store.folder.write_json("uses/p.json", {"at": at})
    run("ls", store)
    try:
        assert len(collect(store, 0).evicted) == 5
    except StoreError as error:
        assert re.search(r"uses/p\.json is damaged", str(error))


def test_a_time_of_use_in_the_future_counts_as_now(store):
    os.utime(store.path(KEYS[0]), (2**35, 2**35))
    run("ls", store)
    fill(store)
    (before, *_) = (entry.size for entry in store.segments.list().values())
    os.utime(store.path(KEYS[1]), (time.time() + 10**6,) * 2)
    assert len(collect(store, before).evicted) == 4
    assert len(collect(store, 0).evicted) == 1


def test_control_characters_do_not_reach_the_terminal(store):
    hold = {"job": "\x1b[2Jx\n", "host": "h\x07", "pid": 1, "until": time.time(), "keys": []}
    store.folder.write_json("holds/a.json", hold)
    output = run("stats", store)
    assert "by process 1 on h? (?[2Jx?)" in output
    assert all(character.isprintable() or character == "\n" for character in output.split("held:")[1])


def test_models_with_control_characters_in_their_names_are_refused(store):
    def change(header):
        metadata = json.loads(header["__metadata__"]["ragkv"])
        header["__metadata__"]["ragkv"] = json.dumps(metadata | {"model": "\x1b[2J"})

    change_header(Path(store.path(KEYS[0])), change)
    assert "damaged" in run("ls", store)


def test_a_segment_that_is_both_set_aside_and_in_its_place(store):
    """As after a collector that was killed, and a job that wrote the segment again."""
    store.segments.set_aside(KEYS[0])
    fill(store)
    size = sum(entry.size for entry in store.segments.list().values())
    result = collect(store, 10**9)
    assert (result.evicted, result.bytes) == ([KEYS[0]], size)
    assert intact(store) == set(range(5))
    assert store.segments.list_aside() == {}


def test_who_may_only_read_still_reads_what_is_set_aside(tmp_path, monkeypatch):
    store = KVStore(tmp_path)
    fill(store)
    store.segments.set_aside(KEYS[0])

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.folder, "_make_folder", refuse)
    assert intact(store) == set(range(5))
    assert list(store.segments.list_aside()) == [KEYS[0]]


def test_two_first_writers_with_different_keys_are_not_both_served(tmp_path, monkeypatch):
    stores, refused, barrier = [], [], threading.Barrier(2)
    for letter in "ab":
        monkeypatch.setenv("RAGKV_STORE_KEY", letter * 32)
        stores.append(KVStore(tmp_path))
        listing = stores[-1].segments.list
        monkeypatch.setattr(stores[-1].segments, "list", lambda listing=listing: (listing(), barrier.wait())[0])

    def write(store):
        try:
            fill(store)
        except WrongKeyError:
            refused.append(store)

    threads = [threading.Thread(target=write, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused
    for store in stores:
        if store not in refused:
            assert verify(store).segments == 5
            assert verify(store).whole


def test_a_key_of_any_bytes(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "RAGKV_STORE_KEY", os.fsdecode(b"\xff\xfe" * 20))
    store = KVStore(tmp_path)
    fill(store)
    assert intact(store) == set(range(5))
