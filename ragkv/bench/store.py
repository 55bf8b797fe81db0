"""``python -m ragkv.bench.store``: the store's speed on this machine, as ratios of times taken in one run.

Two comparisons: checking every file with reading the same files; and segments of a megabyte in a folder, on a local S3
server, and on that server behind a local cache, with plain requests for the same bytes.
"""

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
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from ragkv.bench.timing import measure
from ragkv.prompt import Segment
from ragkv.results.files import write_json
from ragkv.results.provenance import commit
from ragkv.store import Cache, KVStore, Layout
from ragkv.store.verify import verify

LAYOUT = Layout("0" * 64, layers=4, kv_heads=4, head_dim=64, dtype=torch.float32)
TOKENS = 128  # of a segment, 8 KiB each
VALUES = torch.randn((4, 2, 4, TOKENS, 64), generator=torch.Generator().manual_seed(0))
CREDENTIALS = {"key": "loopback", "secret": "loopback"}


def fill(store: KVStore, segments: list[Segment]) -> None:
    """Write these segments with random keys and values."""
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
    """`verify` and reading the same files one after the other, from the disk and from the system's cache."""
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
        result = verify(store)
        if not result.whole or result.segments != megabytes:
            raise RuntimeError(f"the store that was just written is not whole: {result}")

    runs: dict[str, Callable[[], object]] = {"plain read": plain, "verify": check}
    return {"from the disk": measure(runs, repeats, before=forget), "from the system's cache": measure(runs, repeats)}


def s3_times(folder: Path, endpoint: str, segments: int, repeats: int) -> dict[str, pd.DataFrame]:
    """Reading and writing `segments` segments of a megabyte, in milliseconds for all of them."""
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
    """Run an S3 server on this machine in a separate process; yields its URL.

    Raises
    ------
    RuntimeError
        The server does not start: moto is not installed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            with socket.socket() as connection:
                if connection.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            raise RuntimeError("the S3 server did not start: pip install 'moto[server]' s3fs")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def store_bench(
    megabytes: Annotated[int, typer.Option(min=1, help="Size of the store that is checked.")] = 512,
    segments: Annotated[int, typer.Option(min=1, help="How many segments are read and written per turn.")] = 16,
    repeats: Annotated[int, typer.Option(min=2, help="How often each run is timed.")] = 9,
    json: Annotated[Path | None, typer.Option(help="Also write the results to this file.")] = None,
) -> None:
    """Measure how fast a store is checked, read and written on this machine, in a folder and on a local S3 server."""
    with TemporaryDirectory(dir=".") as folder, s3_server() as endpoint:
        tables = verify_times(Path(folder, "verify"), megabytes, repeats)
        tables |= s3_times(Path(folder), endpoint, segments, repeats)
    for name, table in tables.items():
        typer.echo(f"\n{name}, ms\n{table.round(2).to_string()}")
    if json:
        source = {"commit": commit(), "python": sys.version.split()[0], "cores": os.cpu_count()}
        parameters = {"megabytes": megabytes, "segments": segments, "repeats": repeats}
        times = {name: table.to_dict("index") for name, table in tables.items()}
        write_json(json, {"provenance": source, "parameters": parameters, "times": times})


if __name__ == "__main__":
    typer.run(store_bench)
