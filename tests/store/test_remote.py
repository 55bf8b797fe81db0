"""Remote stores: missing buckets, odd URLs, servers that do not answer, and forked children."""

import os
import socket
from contextlib import suppress
from threading import Event, Thread
from time import sleep

import pytest
import torch
from stores import KEYS, LAYOUT, SEGMENTS, fill, intact

from ragkv import KVStore, StoreError
from ragkv.bench.store import CREDENTIALS, s3_server
from ragkv.store import Manifest
from ragkv.store.collect import collect
from ragkv.store.inventory import list_segments
from ragkv.store.verify import verify

pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def s3():
    """The options to reach an S3 server on loopback that has one bucket."""
    pytest.importorskip("moto.server")
    with s3_server() as url:
        options = CREDENTIALS | {"endpoint_url": url}
        KVStore("s3://bucket/x", **options).folder.files.mkdir("bucket")
        yield options


OPERATIONS = {
    "keys": lambda store: store.keys(),
    "open": lambda store: store.open(LAYOUT, SEGMENTS[0]),
    "check": lambda store: store.check(LAYOUT, SEGMENTS[0]),
    "size": lambda store: store.size(LAYOUT, SEGMENTS[0]),
    "missing": lambda store: store.missing(LAYOUT, SEGMENTS),
    "write": lambda store: fill(store),
    "hold": lambda store: store.hold(KEYS, "a job").__enter__(),
    "collect": lambda store: collect(store, 0),
    "verify": lambda store: verify(store),
    "list": lambda store: list_segments(store),
    "manifests": lambda store: store.manifests.names(),
    "read a manifest": lambda store: store.manifests.read("p"),
    "write a manifest": lambda store: store.manifests.write("p", Manifest({})),
    "remove": lambda store: store.folder.remove("aa/file"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_missing_bucket_is_an_error_everywhere(s3, name):
    store = KVStore("s3://no-such-bucket/kv", **s3)
    with pytest.raises(StoreError, match="no-such-bucket"):
        OPERATIONS[name](store)


def test_a_new_prefix_in_a_bucket_is_an_empty_store(s3):
    store = KVStore("s3://bucket/new/prefix", **s3)
    assert store.keys() == []
    assert store.missing(LAYOUT, SEGMENTS) == SEGMENTS
    assert collect(store, 0).evicted == []
    with pytest.raises(KeyError):
        store.open(LAYOUT, SEGMENTS[0])


@pytest.mark.parametrize("url", ["s3://bucket//kv", "s3://bucket/a//b///c/", "s3://bucket"])
def test_empty_names_between_slashes_are_left_out(s3, url):
    store = KVStore(url, **s3)
    fill(store)
    assert store.keys() == sorted(KEYS)
    assert intact(store) == set(range(5))
    assert "//" not in store.path(KEYS[0])
    assert sorted(collect(store, 0).evicted) == sorted(KEYS)
    assert store.keys() == []


@pytest.mark.parametrize("url", ["s3://", "s3:///kv", "gs:///kv", "s3://bucket/../other/kv", "s3://bucket/./kv"])
def test_urls_without_a_bucket_or_that_leave_it_are_refused(url):
    if url.startswith("gs"):
        pytest.importorskip("gcsfs")
    with pytest.raises(ValueError, match=r"names no bucket|has '\.' or '\.\.' in its path"):
        KVStore(url)


def test_evictions_set_segments_aside_on_s3_too(s3):
    store = KVStore("s3://bucket/aside", **s3)
    fill(store)
    store.segments.set_aside(KEYS[0])
    store.segments.set_aside(KEYS[1])
    assert store.keys() == sorted(KEYS[2:])
    with store.hold(KEYS[:1], "a job"):
        assert store.keys() == sorted([KEYS[0], *KEYS[2:]])
        assert intact(store) == set(range(5))
        store.segments.set_aside(KEYS[0])
        assert sorted(collect(store, 0).evicted) == sorted(KEYS[1:])
        assert intact(store) == {0}


@pytest.fixture
def silent():
    """The options to reach a server that accepts connections and never answers."""
    server, connections = socket.create_server(("127.0.0.1", 0)), []
    ended = Event()

    def accept():
        server.settimeout(0.1)
        while not ended.is_set():
            with suppress(TimeoutError):
                connections.append(server.accept()[0])

    thread = Thread(target=accept)
    thread.start()
    yield CREDENTIALS | {"endpoint_url": f"http://127.0.0.1:{server.getsockname()[1]}"}
    ended.set()
    thread.join()
    for each in (server, *connections):
        each.close()


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_server_that_does_not_answer_is_an_error_that_says_so(silent, monkeypatch, name):
    monkeypatch.setenv("RAGKV_STORE_TIMEOUT", "0.3")
    monkeypatch.setattr("ragkv.store.remote.LISTINGS", 1)
    store = KVStore("s3://bucket/kv", **silent)
    with pytest.raises(StoreError, match=r"waited 0\.3 seconds for the store 's3://bucket/kv' to answer \(\w+ bucket"):
        OPERATIONS[name](store)


def test_a_request_that_takes_long_is_logged(silent, monkeypatch, caplog):
    monkeypatch.setattr("ragkv.store.remote.PATIENCE", 0.01)
    store = KVStore("s3://bucket/kv", **silent)

    def slow(path, **options):
        while not caplog.text:
            sleep(0.01)
        return b"data"

    monkeypatch.setattr(store.folder.files, "cat_file", slow)
    assert store.folder.read("aa/file") == b"data"
    assert "waiting for the store 's3://bucket/kv' to answer (cat_file bucket/kv/aa/file)" in caplog.text


@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "nan", "inf"])
def test_a_time_out_is_a_number_of_seconds(monkeypatch, value):
    monkeypatch.setenv("RAGKV_STORE_TIMEOUT", value)
    with pytest.raises(ValueError, match=r"RAGKV_STORE_TIMEOUT is .*: give a number of seconds above 0"):
        KVStore("memory://kv")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_a_forked_child_reads_a_remote_store(s3):
    store = KVStore("s3://bucket/forked", **s3)
    fill(store)
    if not (child := os.fork()):
        code = 1
        try:
            code = 0 if intact(store) == set(range(5)) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(store.open(LAYOUT, SEGMENTS[2]).layer(0), torch.full((2, 1, 3, 4), 2.0))
