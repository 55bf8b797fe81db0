"""Forked children beside a parent with worker processes, threads and leases: neither makes the other hang."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from stores import KEYS, LAYOUT, SEGMENTS, fill, intact

from ragkv import KVStore
from ragkv.loading.prefetch import PrefetchingStore
from ragkv.loading.readers import WorkerReader
from ragkv.loading.workers import ReadWorkers
from ragkv.store.collect import collect

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
LIMIT = 120  # seconds after which a process is taken to hang


def in_child(function) -> None:
    """Call a function in a forked child, which must say that it returned True."""
    receive, send = os.pipe()
    if not (child := os.fork()):
        try:
            os.write(send, b"y" if function() else b"n")
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    assert answer == b"y"


@pytest.fixture
def store(tmp_path):
    store = KVStore(tmp_path)
    fill(store)
    return store


@pytest.fixture
def workers():
    workers = ReadWorkers()
    workers.count = 2
    return workers


def reads(store, workers) -> bool:
    """Whether a reader with these workers gives all layers."""
    segments = [store.open(LAYOUT, segment) for segment in SEGMENTS]
    reader = WorkerReader(segments, [range(LAYOUT.layers)], workers)
    return gives(reader, segments)


def gives(reader, segments) -> bool:
    reader.copy_next(target := torch.zeros(reader.size, dtype=torch.uint8))
    expected = [torch.stack([segment.layer(i) for i in range(LAYOUT.layers)]).flatten() for segment in segments]
    return torch.equal(target.view(torch.float32), torch.cat(expected))


def test_a_child_gets_workers_of_its_own(store, workers):
    assert reads(store, workers)
    before = [worker.pid for worker in workers._workers]

    def child():
        done = reads(store, workers)
        return done and {worker.pid for worker in workers._workers}.isdisjoint(before)

    in_child(child)
    assert reads(store, workers)
    assert [worker.pid for worker in workers._workers] == before


def test_a_reader_that_a_child_inherits_reads_by_itself(store, workers):
    segments = [store.open(LAYOUT, segment) for segment in SEGMENTS]
    reader = WorkerReader(segments, [range(LAYOUT.layers)], workers)
    in_child(lambda: reader.ready() and gives(reader, segments))
    assert gives(reader, segments)


def test_a_child_prefetches_by_itself(store):
    prefetching = PrefetchingStore(store, LAYOUT)
    prefetching.prefetch(SEGMENTS[:2])
    prefetching.wait()

    def child():
        prefetching.prefetch(SEGMENTS)
        prefetching.wait()
        return intact(prefetching) == set(range(5))

    in_child(child)
    assert intact(prefetching) == set(range(5))


def test_a_child_that_leaves_a_hold_leaves_it_to_its_parent(store):
    context = store.hold(KEYS, "a job")
    with context:
        (hold,) = store.folder.list("holds")

        def child():
            context.__exit__(None, None, None)
            return True

        in_child(child)
        assert [entry.name for entry in store.folder.list("holds")] == [hold.name]
        assert collect(store, 0).evicted == []
    assert store.folder.list("holds") == []


SCENE = """
import os, signal, sys, time, torch
from stores import *
from ragkv.loading.readers import WorkerReader
from ragkv.loading.workers import ReadWorkers

store = KVStore(sys.argv[1])

def read(workers):
    segments = [store.open(LAYOUT, segment) for segment in SEGMENTS]
    reader = WorkerReader(segments, [range(2)], workers)
    reader.copy_next(torch.zeros(reader.size, dtype=torch.uint8))

"""
ENDINGS = {
    "a child ends as a program does": "if not os.fork(): sys.exit(0)\nos.wait()\nread(workers)",
    "a child reads and ends": "if not os.fork(): read(workers), sys.exit(0)\nos.wait()\nread(workers)",
    "a child outlives its parent": "if not os.fork(): time.sleep(3600)",
    "a worker was stopped": "workers._workers[0].send_signal(signal.SIGSTOP)",
    "a worker was killed": "workers._workers[0].kill(), read(workers)",
}


def test_no_program_hangs_at_its_end(store):
    """Each ending in a program of its own, forked from one so that PyTorch is imported once."""
    programs = SCENE
    for ending in ENDINGS.values():
        lines = [
            f"signal.alarm({LIMIT})",
            "workers = ReadWorkers()",
            "workers.count = 2",
            "read(workers)",
            *ending.split("\n"),
            "sys.exit(0)",
        ]
        programs += "if not (program := os.fork()):\n" + "".join(f"    {line}\n" for line in lines)
        programs += "print(os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]), flush=True)\n"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])}
    command = [sys.executable, "-c", programs, store.url]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, process_group=0
    ) as process:
        try:
            codes = [process.stdout.readline().strip() for _ in ENDINGS]
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # what sleeps, too
        assert dict(zip(ENDINGS, codes, strict=True)) == dict.fromkeys(ENDINGS, "0"), process.stderr.read()
