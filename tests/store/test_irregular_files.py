"""Pipes, devices, folders and links in place of a store's files are refused; nothing waits for them."""

import os
from pathlib import Path

import pytest
from stores import KEYS, LAYOUT, SEGMENTS, fill, intact, write_hold

from ragkv import KVStore, StoreError
from ragkv.loading.workers import ReadWorkers
from ragkv.store import Cache
from ragkv.store.collect import collect
from ragkv.store.verify import verify


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to(path.with_name("pipe"))


KINDS = [pipe, folder, link_to_a_device, link_to_a_pipe]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def replace(request):
    """Replaces a file by something that is not one."""

    def replacing(path):
        path.unlink(missing_ok=True)
        request.param(path)

    return replacing


@pytest.fixture
def store(tmp_path):
    store = KVStore(tmp_path)
    fill(store)
    return store


def test_an_irregular_segment_is_refused(store, replace):
    opened = store.open(LAYOUT, SEGMENTS[0])
    replace(Path(store.path(KEYS[0])))
    said = "it is not a regular file: remove it"
    for operation in (store.open, store.check, store.size):
        with pytest.raises(StoreError, match=said):
            operation(LAYOUT, SEGMENTS[0])
    with pytest.raises(StoreError, match=said):
        store.missing(LAYOUT, SEGMENTS)
    with pytest.raises(StoreError, match=said):
        opened.layer(0)
    assert verify(store).segments == 4  # it is none
    assert KEYS[0] not in collect(store, 0).evicted


def test_workers_refuse_irregular_files(store, replace):
    layer = store.open(LAYOUT, SEGMENTS[0]).layer_range(0)
    workers = ReadWorkers()
    workers.count = 1
    workers.buffer(layer.size)
    assert workers.wait(workers.submit([(layer, 0)]))
    replace(Path(layer.path))
    assert not workers.wait(workers.submit([(layer, 0)]))


def test_a_folder_in_place_of_a_segment_is_not_written_into(store):
    path = Path(store.path(KEYS[0]))
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="cannot write"):
        fill(store)
    assert list(path.iterdir()) == []
    assert sorted(path.parent.iterdir()) == [path]  # no unfinished file


def test_other_irregular_files_in_place_of_a_segment_are_replaced(store, replace):
    path = Path(store.path(KEYS[0]))
    replace(path)
    if not path.is_dir():
        fill(store)
        assert intact(store) == set(range(5))
        assert path.is_file() and not path.is_symlink()


def test_a_file_in_place_of_a_subfolder_is_an_error(tmp_path):
    (tmp_path / KEYS[0][:2]).write_bytes(b"")
    store = KVStore(tmp_path)
    for operation in (
        fill,
        lambda store: store.open(LAYOUT, SEGMENTS[0]),
        lambda store: store.missing(LAYOUT, SEGMENTS),
    ):
        with pytest.raises(StoreError, match=r"Not a directory|File exists"):
            operation(store)


def test_a_file_in_place_of_the_store_is_an_error(tmp_path):
    (tmp_path / "kv").write_bytes(b"")
    store = KVStore(tmp_path / "kv")
    for operation in (KVStore.keys, verify, lambda store: collect(store, 0), fill):
        with pytest.raises(StoreError, match=r"Not a directory|File exists"):
            operation(store)


def test_irregular_manifests_and_holds_are_refused(store, replace, tmp_path):
    write_hold(store, 0, 0)
    (tmp_path / "manifests").mkdir()
    for name in ("holds/a.json", "manifests/p.json"):
        replace(tmp_path / name)
        with pytest.raises(StoreError, match="it is not a regular file: remove it"):
            store.folder.read_json(name, dict)
    assert len(collect(store, 0).evicted) == 5


def test_irregular_copies_in_a_cache_are_not_used(store, replace, tmp_path):
    cached = KVStore(tmp_path, cache=Cache(tmp_path / "cache", 10**6))
    assert intact(cached) == set(range(5))
    replace(tmp_path / "cache" / KEYS[0][:2] / f"{KEYS[0]}.cached")
    assert intact(cached) == set(range(5))
