"""``ragkv store``: what lies in a store, whether it is whole, and making room."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from ragkv.store import Cache, KVStore, StoreError
from ragkv.store.collect import collect
from ragkv.store.inventory import Inventory, list_segments, sharing
from ragkv.store.verify import verify

store = typer.Typer(help="Look after a store of keys and values.", no_args_is_help=True)
Url = Annotated[str, typer.Argument(help="A folder, or an fsspec URL such as s3://bucket/kv.")]
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def parse_bytes(text: str) -> int:
    """``"500M"``, ``"1.5 GB"`` or plain bytes; units are powers of a thousand.

    Raises
    ------
    typer.BadParameter
        It is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", text.strip())
    if not found:
        raise typer.BadParameter(f"{text!r} is no number of bytes: give one such as 500000, 500M or 1.5G")
    return int(float(found[1]) * _UNITS[found[2]])


@store.command("ls")
def list_command(url: Url, limit: Annotated[int, typer.Option(min=0, help="At most so many; 0: all.")] = 0) -> None:
    """List the segments, the last used first: tokens, bytes, format, model, last use."""
    with _explained():
        table = list_segments(_opened(url), progress=True)
    shown = (table.head(limit) if limit else table).copy()
    shown["key"], shown["model"] = shown["key"].str[:12], shown["model"].str[:12].fillna("damaged")
    shown["tokens"], shown["stored_as"] = shown["tokens"].astype("Int64"), shown["stored_as"].fillna("")
    shown["dtype"], shown["last_use"] = shown["dtype"].fillna(""), shown["last_use"].dt.strftime("%Y-%m-%d %H:%M")
    shown["held"] = shown["held"].map({True: "held", False: ""})
    typer.echo(_table(shown) if len(shown) else "no segments")
    typer.echo(f"{len(table)} segments, {table['tokens'].sum():,} tokens, {_size(table['bytes'].sum())}")


@store.command("stats")
def stats_command(
    url: Url, cache: Annotated[Path | None, typer.Option(help="Also the cache in this folder.")] = None
) -> None:
    """Sum up: bytes by model and format, what sharing saves, who holds segments, the cache."""
    with _explained():
        opened = _opened(url)
        table, shared, held = list_segments(opened, progress=True), sharing(opened), opened.holds.standing()
        leftovers = Inventory.of(opened).leftovers
    named = table.assign(model=table["model"].str[:12].fillna("damaged")).fillna({"stored_as": "", "dtype": ""})
    groups = named.groupby(["model", "dtype", "stored_as"]).agg(
        segments=("key", "size"), tokens=("tokens", "sum"), bytes=("bytes", "sum"), last_use=("last_use", "max")
    )
    groups["last_use"] = groups["last_use"].dt.strftime("%Y-%m-%d %H:%M")
    typer.echo(f"{len(table)} segments, {_size(table['bytes'].sum())}")
    if len(table):
        typer.echo(_table(groups.reset_index()))
    if len(shared):
        typer.echo("\nWhat profiles need, and what they save by sharing segments:")
        shared["shared"] = (shared["references"] / shared["segments"]).map("{:.2f} uses each".format)
        typer.echo(_table(shared))
    for lease in held:
        typer.echo(f"held: {len(lease.keys)} segments by process {lease.pid} on {lease.host} ({lease.job})")
    if leftovers:
        typer.echo(f"{len(leftovers)} unfinished files of killed jobs, {_size(sum(e.size for e in leftovers))}")
    if cache:
        typer.echo(f"cache {cache}: {_size(Cache(cache, 0).bytes())}")


@store.command("verify")
def verify_command(url: Url) -> None:
    """Read every file and check every bit. Exit code 1 if any is damaged."""
    with _explained():
        found = verify(_opened(url), progress=True)
    speed = found.bytes / 1e9 / max(found.seconds, 1e-9)
    typer.echo(f"{found.segments} segments, {_size(found.bytes)} read in {found.seconds:.2f} s ({speed:.2f} GB/s)")
    for key, problem in found.damaged.items():
        typer.echo(f"damaged: {key}: {problem}")
    for name, count in found.missing.items():
        typer.echo(f"missing: {count} segments that {name} needs; precompute makes them again")
    if found.leftovers:
        typer.echo(f"{found.leftovers} unfinished files of killed jobs; `ragkv store gc` removes them")
    if found.whole:
        typer.echo("every file is as it was written")
        return
    typer.echo(f"{len(found.damaged)} damaged: they are never used; run precompute on their prompts to mend them")
    raise typer.Exit(1)


@store.command("gc")
def collect_command(
    url: Url,
    budget: Annotated[str, typer.Option(help="What may stay: bytes, or 500M, 20G, ...")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would leave.")] = False,
) -> None:
    """Evict least recently used segments until the rest fits the budget; what a running job holds stays."""
    limit = parse_bytes(budget)
    with _explained():
        done = collect(_opened(url), limit, dry_run=dry_run, progress=True)
    would = "would evict" if dry_run else "evicted"
    typer.echo(f"{would} {len(done.evicted)} segments, {_size(done.freed)}; {_size(done.bytes)} stay")
    if done.leftovers:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {done.leftovers} unfinished files of killed jobs")
    if done.bytes > limit:
        typer.echo(f"over the budget: running jobs hold {done.held} segments; `ragkv store stats` says which jobs")


def _opened(url: str) -> KVStore:
    opened = KVStore(url)
    if opened.folder.local and not Path(opened.folder.root).is_dir():
        raise StoreError(f"there is no folder {opened.folder.root}: give the store's, such as outputs/tiny/store")
    return opened


@contextmanager
def _explained() -> Iterator[None]:
    """Errors as one line."""
    try:
        yield
    except (StoreError, ValueError, ImportError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def _table(rows: pd.DataFrame) -> str:
    sized = {name: rows[name].map(_size) for name in ("bytes", "saved") if name in rows}
    return rows.assign(**sized).to_string(index=False)


def _size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
