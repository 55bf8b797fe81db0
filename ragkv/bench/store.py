"""``python -m ragkv.bench.store``: the store's speed on this machine, as ratios of times taken in one run.

Checking every file against reading the same files; and segments of a megabyte in a folder, on an S3 server on
loopback, and there behind a local cache, against plain requests for the same bytes.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from ragkv.bench.timing import measure
from ragkv.prompt import Segment
from ragkv.results.files import write_json
from ragkv.results.provenance import commit
from ragkv.store import Cache, KVStore, Layout
from ragkv.store.verify import verify

LAYOUT = Layout("0" * 64, layers=4, kv_heads=4, head_dim=64, dtype=torch.float32)
TOKENS = 128  # of 8 KiB each
VALUES = torch.randn((4, 2, 4, TOKENS, 64), generator=torch.Generator().manual_seed(0))
CREDENTIALS = {"key": "loopback", "secret": "loopback"}


def fill(store: KVStore, segments: list[Segment]) -> None:
    """Write segments of random keys and values."""
    for segment in segments:
        store.write(LAYOUT, segment, VALUES, torch.zeros(TOKENS))


def read(store: KVStore, segments: list[Segment]) -> None:
    """Read all of each segment, as a prefill does."""
    for segment in segments:
        opened = store.open(LAYOUT, segment)
        for index in range(LAYOUT.layers):
            opened.layer(index)
        opened.surprisal()


def verify_times(folder: Path, megabytes: int, repeats: int) -> dict[str, pd.DataFrame]:
    """`verify` against reading the same files one after the other, from the disk and from the system's cache."""
    store = KVStore(str(folder))
    fill(store, [Segment((number,) * TOKENS) for number in range(megabytes)])
    files = sorted(folder.rglob("*.safetensors"))
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())

    def forget() -> None:
        for file in files:
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def plain() -> None:
        for file in files:
            file.read_bytes()

    def check() -> None:
        if not (found := verify(store)).whole or found.segments != megabytes:
            raise RuntimeError(f"the store that was just written is not whole: {found}")

    runs: dict[str, Callable[[], object]] = {"plain read": plain, "verify": check}
    cold: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            forget()
            start = time.perf_counter()
            run()
            cold[name].append((time.perf_counter() - start) * 1e3)
    table = pd.DataFrame({name: pd.Series(times).quantile([0.2, 0.5, 0.8]) for name, times in cold.items()}).T
    table.columns = pd.Index(["p20", "p50", "p80"])
    table["speed-up"] = table["p50"].iloc[0] / table["p50"]
    return {"from the disk": table, "from the system's cache": measure(runs, repeats)}


def s3_times(folder: Path, endpoint: str, segments: int, repeats: int) -> dict[str, pd.DataFrame]:
    """Reading and writing segments of a megabyte, milliseconds for all of them."""
    options: dict[str, Any] = CREDENTIALS | {"endpoint_url": endpoint}
    remote = KVStore("s3://ragkv-bench/kv", **options)
    remote.folder.files.mkdir("ragkv-bench")
    local = KVStore(str(folder / "local"))
    cached = KVStore("s3://ragkv-bench/kv", cache=Cache(folder / "cache", 1e9), **options)
    several = [Segment((number,) * TOKENS) for number in range(segments)]
    for store in (local, remote):
        fill(store, several)
    keys = [LAYOUT.key(segment) for segment in several]
    data = local.folder.read(f"{keys[0][:2]}/{keys[0]}.safetensors")

    def get() -> None:
        for key in keys:
            remote.folder.files.cat_file(remote.path(key), start=0)

    new = count()

    def put() -> None:
        for _ in keys:
            remote.folder.files.pipe_file(f"ragkv-bench/plain/{next(new)}", data)

    reads: dict[str, Callable[[], object]] = {
        "folder": lambda: read(local, several),
        "S3 behind a cache": lambda: read(cached, several),
        "S3": lambda: read(remote, several),
        "plain S3 requests": get,
    }
    writes: dict[str, Callable[[], object]] = {
        "folder": lambda: fill(local, several),
        "S3 behind a cache": lambda: fill(cached, several),
        "S3": lambda: fill(remote, several),
        "plain S3 requests": put,
    }
    return {"read": measure(reads, repeats), "write": measure(writes, repeats)}


@contextmanager
def s3_server() -> Iterator[str]:
    """An S3 server on loopback, in a process of its own; its URL.

    Raises
    ------
    RuntimeError
        It does not start: moto is not installed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            raise RuntimeError("the S3 server did not start: pip install 'moto[server]' s3fs")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ragkv.bench.store", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=512, help="of the store that is checked")
    parser.add_argument("--segments", type=int, default=16, help="read and written per turn")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the results there")
    arguments = parser.parse_args()
    with TemporaryDirectory(dir=".") as folder, s3_server() as endpoint:
        tables = verify_times(Path(folder, "verify"), arguments.megabytes, arguments.repeats)
        tables |= s3_times(Path(folder), endpoint, arguments.segments, arguments.repeats)
    for name, table in tables.items():
        print(f"\n{name}, ms\n{table.round(2).to_string()}")
    if arguments.json:
        source = {"commit": commit(), "python": sys.version.split()[0], "cores": os.cpu_count()}
        parameters = {"megabytes": arguments.megabytes, "segments": arguments.segments, "repeats": arguments.repeats}
        times = {name: table.to_dict("index") for name, table in tables.items()}
        write_json(arguments.json, {"provenance": source, "parameters": parameters, "times": times})


if __name__ == "__main__":
    main()
