"""Evictions never take what a running job holds: whatever the clocks say, and whenever a process stops or is killed."""

import errno
import os
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from helpers import memory_store
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import KEYS, LAYOUT, SEGMENTS, fill, intact, write_hold

from ragkv import KVStore, StoreError
from ragkv.store.collect import collect
from ragkv.store.files import Folder
from ragkv.store.kvstore import HOLD_SECONDS
from ragkv.store.leases import CLOCK_DIFFERENCE
from ragkv.store.local_files import Entry
from ragkv.store.verify import verify

STEPS = 32  # of the collector, before and after each of its operations on the store's folder


@settings(max_examples=30)
@given(
    clock=st.floats(-CLOCK_DIFFERENCE, CLOCK_DIFFERENCE),
    file_clock=st.floats(-CLOCK_DIFFERENCE, CLOCK_DIFFERENCE),
    unrenewed=st.floats(0, HOLD_SECONDS - 5),
)
def test_a_hold_stands_with_clocks_ten_minutes_apart(tmp_path, clock, file_clock, unrenewed):
    """The job's clock and that of the file system differ from this one by so many seconds."""
    assert CLOCK_DIFFERENCE == 600
    store = KVStore(tmp_path)
    fill(store)
    renewed = time.time() - unrenewed
    write_hold(store, renewed + clock + HOLD_SECONDS, renewed + file_clock)
    assert collect(store, 0).evicted == []
    assert store.keys() == sorted(KEYS)


@pytest.mark.parametrize("age", [HOLD_SECONDS + CLOCK_DIFFERENCE + 5, 10**6, -CLOCK_DIFFERENCE - 60, -(10**9)])
def test_a_hold_of_long_ago_or_from_the_far_future_ends(tmp_path, age):
    store = KVStore(tmp_path)
    fill(store)
    written = time.time() - age
    write_hold(store, written + HOLD_SECONDS, written)
    assert sorted(collect(store, 0).evicted) == sorted(KEYS)
    assert not list((tmp_path / "holds").iterdir())


def test_a_job_whose_clock_is_years_ahead_still_holds_by_the_times_of_its_files(tmp_path):
    store = KVStore(tmp_path)
    fill(store)
    write_hold(store, time.time() + 10**8, time.time() - 100)
    assert collect(store, 0).evicted == []
    write_hold(store, time.time() + 10**8, time.time() - 1000)
    assert len(collect(store, 0).evicted) == len(KEYS)


def test_a_hold_is_renewed_on_a_full_disk(tmp_path, monkeypatch):
    store = KVStore(tmp_path)
    fill(store)
    store.holds._seconds = 0.2
    with store.hold(KEYS, "a job"):
        (path,) = (tmp_path / "holds").iterdir()
        content = path.read_bytes()

        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(store.folder.files, "pipe_file", full)
        time.sleep(0.1)  # a write that has begun ends
        content = path.read_bytes()
        os.utime(path, (1, 1))
        while path.stat().st_mtime == 1:
            time.sleep(0.01)
        assert path.read_bytes() == content
        assert [entry.name for entry in store.folder.list("holds")] == [f"holds/{path.name}"]  # no unfinished files


class Interrupted(Exception):
    pass


def interruptions(monkeypatch, store, interrupt):
    """Call `interrupt` with the number of each operation of the store's folder: 2n before it, and 2n + 1 after it."""
    steps = count()

    for name in ("move", "remove", "list"):
        real = getattr(Folder, name)

        def operation(self, *arguments, real=real):
            if self is not store.folder:
                return real(self, *arguments)
            interrupt(next(steps))
            result = real(self, *arguments)
            interrupt(next(steps))
            return result

        monkeypatch.setattr(Folder, name, operation)


@pytest.mark.parametrize("step", range(STEPS))
def test_a_job_keeps_what_it_finds_whenever_the_collector_was_stopped(tmp_path, monkeypatch, step):
    """The collector stops at any step, for any time; a job begins, holds all segments, and reads them to the end."""
    collector, other = KVStore(tmp_path), KVStore(tmp_path)
    fill(other)
    found = None

    with ExitStack() as job:

        def begin(number):
            nonlocal found
            if number == step:
                job.enter_context(other.hold(KEYS, "a job"))
                found = intact(other)

        interruptions(monkeypatch, collector, begin)
        result = collect(collector, 0)
        assert found is not None, "the collector takes fewer steps: so should this test"
        assert intact(other) == found
        assert verify(other).whole
        assert {KEYS[number] for number in found}.isdisjoint(result.evicted)
        assert len(other.keys()) == len(found)


def test_the_steps_above_are_all(tmp_path, monkeypatch):
    store, steps = KVStore(tmp_path), []
    fill(store)
    interruptions(monkeypatch, store, steps.append)
    collect(store, 0)
    assert len(steps) == STEPS


@pytest.mark.parametrize("step", range(STEPS - 8))  # two held segments are neither moved nor removed
def test_a_killed_collector_loses_nothing_that_is_held_and_the_next_one_goes_on(tmp_path, monkeypatch, step):
    collector, other = KVStore(tmp_path), KVStore(tmp_path)
    fill(other)

    def kill(number):
        if number >= step:
            raise Interrupted

    interruptions(monkeypatch, collector, kill)
    with other.hold(KEYS[:2], "a job"):
        with pytest.raises(Interrupted):
            collect(collector, 0)
        assert {0, 1} <= intact(other)
        collect(other, 0)
        assert intact(other) == {0, 1}
    assert len(collect(other, 0).evicted) == 2
    assert not list(tmp_path.rglob("*.safetensors"))


def test_whoever_reads_a_segment_that_is_set_aside_moves_it_back(store):
    fill(store)
    for key in KEYS:
        store.segments.set_aside(key)
    assert store.keys() == []
    assert store.missing(LAYOUT, SEGMENTS) == []
    assert intact(store) == set(range(5))
    opened = store.open(LAYOUT, SEGMENTS[3])
    store.segments.set_aside(KEYS[3])
    assert (opened.layer(0) == 3).all()
    assert sorted(KEYS) == store.keys()
    assert store.segments.list_aside() == {}


def test_two_collectors_at_once(tmp_path, monkeypatch):
    """The second one runs at each step of the first."""
    for step in range(STEPS):
        first, second = KVStore(tmp_path / str(step)), KVStore(tmp_path / str(step))
        fill(first)
        with first.hold(KEYS[:1], "a job"), monkeypatch.context() as patch:
            interruptions(patch, first, lambda number, step=step, other=second: number == step and collect(other, 0))
            collect(first, 0)
            assert intact(first) == {0}


@pytest.mark.parametrize("folder_fails", [False, True], ids=["disk is full", "no folder can be made either"])
def test_collecting_works_on_a_full_disk(tmp_path, monkeypatch, folder_fails):
    store = KVStore(tmp_path)
    fill(store)
    freed = False

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    make_folder, remove = store.folder._make_folder, store.folder.remove

    def make(name):
        if folder_fails and not freed:
            full()
        make_folder(name)

    def removing(name):
        nonlocal freed
        freed = True
        return remove(name)

    monkeypatch.setattr(store.folder.files, "pipe_file", full)
    monkeypatch.setattr(store.folder, "_make_folder", make)
    monkeypatch.setattr(store.folder, "remove", removing)
    size = sum(entry.size for entry in store.segments.list().values())
    result = collect(store, 0)
    assert (sorted(result.evicted), result.freed, result.bytes) == (sorted(KEYS), size, 0)
    assert not list(tmp_path.rglob("*.safetensors"))


ERRORS = [errno.EACCES, errno.EMFILE, errno.EIO, errno.ESTALE]


@pytest.mark.parametrize("number", ERRORS, ids=map(errno.errorcode.get, ERRORS))
@pytest.mark.parametrize("place", [".", KEYS[0][:2], "holds", "manifests", "evicting"])
def test_a_folder_that_cannot_be_listed_is_an_error_and_nothing_is_removed(tmp_path, monkeypatch, place, number):
    store = KVStore(tmp_path)
    fill(store)
    collect(store, 10**9)
    with store.hold(KEYS[:1], "a job"):
        store.segments.set_aside(KEYS[1])
        before = sorted(path for path in tmp_path.rglob("*.safetensors"))
        real = os.scandir

        def scandir(path):
            if Path(path) == tmp_path / place:
                raise OSError(number, os.strerror(number))
            return real(path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", scandir)
            with pytest.raises(StoreError, match=f"cannot read .*{os.strerror(number)}"):
                collect(store, 0)
            if place not in ("holds", "evicting"):
                with pytest.raises(StoreError, match="cannot read"):
                    verify(store)
            if place in (".", KEYS[0][:2]):
                with pytest.raises(StoreError, match="cannot read"):
                    store.keys()
            assert all(path.exists() or (tmp_path / "evicting" / path.name).exists() for path in before)
        assert intact(store) == set(range(5))


def test_a_remote_folder_that_cannot_be_listed_is_an_error(monkeypatch):
    store = memory_store()
    fill(store)
    real = store.folder.files.ls

    def ls(path, **options):
        if path.endswith(KEYS[0][:2]):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(store.folder.files, "ls", ls)
    for operation in (store.keys, lambda: collect(store, 0), lambda: verify(store)):
        with pytest.raises(StoreError, match="cannot read"):
            operation()


def test_a_store_on_a_disk_that_is_not_mounted_is_an_error(tmp_path):
    (tmp_path / "kv").symlink_to(tmp_path / "mount")
    with pytest.raises(StoreError, match="link that leads nowhere"):
        verify(KVStore(tmp_path / "kv"))


def test_holds_behind_a_link_are_not_overlooked(tmp_path):
    store = KVStore(tmp_path / "kv")
    fill(store)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "kv/holds").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="leads elsewhere by a link"):
        collect(store, 0)
    assert intact(store) == set(range(5))


def test_a_store_that_does_not_exist_yet_is_empty(tmp_path):
    store = KVStore(tmp_path / "not/yet")
    assert store.keys() == []
    assert collect(store, 0).evicted == []
    assert verify(store).segments == 0
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(
    "value",
    [{}, {"job": "j"}, {"job": 1, "host": 2, "pid": "x", "until": 1, "keys": []}, {"keys": 3}, [], None],
    ids=str,
)
def test_a_hold_that_makes_no_sense_stops_the_collector(tmp_path, value):
    store = KVStore(tmp_path)
    fill(store)
    store.folder.write_json("holds/a.json", value)
    with pytest.raises(StoreError, match=r"holds/a\.json is damaged"):
        collect(store, 0)
    assert intact(store) == set(range(5))


def test_entries_are_files_of_the_store(tmp_path):
    """Neither links nor pipes, folders or files elsewhere."""
    store = KVStore(tmp_path)
    store.folder.write("aa/file", b"123")
    (tmp_path / "aa/folder").mkdir()
    (tmp_path / "aa/link").symlink_to(tmp_path / "aa/file")
    os.mkfifo(tmp_path / "aa/pipe")
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "bb").symlink_to(tmp_path / "aa")
    assert store.folder.list() == [Entry("aa/file", 3, (tmp_path / "aa/file").stat().st_mtime)]
