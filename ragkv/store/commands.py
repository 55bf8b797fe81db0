"""``ragkv store``: list a store's segments, verify them, and free space."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError

from ragkv.store import Cache, KVStore, StoreError
from ragkv.store.collect import collect
from ragkv.store.inventory import Inventory, list_segments, sharing
from ragkv.store.verify import verify

if TYPE_CHECKING:
    import pandas as pd

store = typer.Typer(help="Look after a store of keys and values.", no_args_is_help=True)
Url = Annotated[str, typer.Argument(help="A folder, or an fsspec URL such as s3://bucket/kv.")]


def parse_bytes(text: str) -> ByteSize:
    """Read ``"500M"``, ``"1.5 GB"`` or a plain number of bytes; these units are powers of a thousand.

    Raises
    ------
    typer.BadParameter
        The text is none of these.
    """
    if ByteSize.byte_string_re.fullmatch(text.strip()):  # pydantic alone would read 1,000G as one byte
        with suppress(ValidationError):
            return TypeAdapter(ByteSize).validate_python(text)
    raise typer.BadParameter(f"{text!r} is no number of bytes: give one such as 500000, 500M or 1.5G")


@store.command("ls")
def list_command(
    url: Url, limit: Annotated[int, typer.Option(min=0, help="Number of rows to show; 0 shows all.")] = 0
) -> None:
    """List segments, the most recently used first: tokens, bytes, format, model, last use."""
    with _errors_in_one_line():
        segments = list_segments(_open(url), progress=True)
    shown = _readable(segments.head(limit) if limit else segments)
    shown["key"] = shown["key"].str[:12]
    shown["tokens"] = shown["tokens"].astype("Int64")
    shown["held"] = shown["held"].map({True: "held", False: ""})
    typer.echo(_table(shown) if len(shown) else "no segments")
    tokens, size = segments["tokens"].sum(), segments["bytes"].sum()
    typer.echo(f"{len(segments)} segments, {tokens:,} tokens, {_size(size)}")


@store.command("stats")
def stats_command(
    url: Url, cache: Annotated[Path | None, typer.Option(help="Also report on the cache in this folder.")] = None
) -> None:
    """Summarise a store: bytes by model and format, what sharing saves, who holds segments, the cache."""
    with _errors_in_one_line():
        opened = _open(url)
        segments = list_segments(opened, progress=True)
        shared = sharing(opened)
        holds = opened.holds.standing()
        leftovers = Inventory.of(opened).leftovers
    typer.echo(f"{len(segments)} segments, {_size(segments['bytes'].sum())}")
    if len(segments):
        grouped = segments.fillna({"model": "damaged", "dtype": "", "stored_as": ""})
        groups = grouped.groupby(["model", "dtype", "stored_as"]).agg(
            segments=("key", "size"), tokens=("tokens", "sum"), bytes=("bytes", "sum"), last_use=("last_use", "max")
        )
        typer.echo(_table(_readable(groups.reset_index())))
    if len(shared):
        typer.echo("\nWhat profiles need, and what they save by sharing segments:")
        shared["shared"] = (shared["references"] / shared["segments"]).map("{:.2f} uses each".format)
        typer.echo(_table(shared))
    for lease in holds:
        typer.echo(f"held: {len(lease.keys)} segments by process {lease.pid} on {lease.host} ({lease.job})")
    if leftovers:
        size = sum(entry.size for entry in leftovers)
        typer.echo(f"{len(leftovers)} unfinished files of killed jobs, {_size(size)}")
    if cache:
        typer.echo(f"cache {cache}: {_size(Cache(cache, 0).bytes())}")


@store.command("verify")
def verify_command(url: Url) -> None:
    """Read every file and check every bit. Exit code 1 if any is damaged."""
    with _errors_in_one_line():
        result = verify(_open(url), progress=True)
    speed = result.bytes / 1e9 / max(result.seconds, 1e-9)
    typer.echo(f"{result.segments} segments, {_size(result.bytes)} read in {result.seconds:.2f} s ({speed:.2f} GB/s)")
    for key, problem in result.damaged.items():
        typer.echo(f"damaged: {key}: {problem}")
    for name, count in result.missing.items():
        typer.echo(f"missing: {count} segments that {name} needs; precompute makes them again")
    if result.leftovers:
        typer.echo(f"{result.leftovers} unfinished files of killed jobs; `ragkv store gc` removes them")
    if result.whole:
        typer.echo("every file is as it was written")
        return
    typer.echo(f"{len(result.damaged)} damaged: they are never used; run precompute on their prompts to mend them")
    raise typer.Exit(1)


@store.command("gc")
def collect_command(
    url: Url,
    budget: Annotated[ByteSize, typer.Option(parser=parse_bytes, help="What may stay, in bytes, or as 500M, 20G, ...")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Evict the least recently used segments until the rest fits the budget; what running jobs hold stays."""
    with _errors_in_one_line():
        result = collect(_open(url), budget, dry_run=dry_run, progress=True)
    evicted = "would evict" if dry_run else "evicted"
    typer.echo(f"{evicted} {len(result.evicted)} segments, {_size(result.freed)}; {_size(result.bytes)} stay")
    if result.leftovers:
        removed = "would remove" if dry_run else "removed"
        typer.echo(f"{removed} {result.leftovers} unfinished files of killed jobs")
    if result.bytes > budget:
        typer.echo(f"over the budget: running jobs hold {result.held} segments; `ragkv store stats` says which jobs")


def _open(url: str) -> KVStore:
    opened = KVStore(url)
    if opened.folder.local and not Path(opened.folder.root).is_dir():
        raise StoreError(f"there is no folder {opened.folder.root}: give the store's, such as outputs/tiny/store")
    return opened


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except (StoreError, ValueError, ImportError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def _readable(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Short model names, readable times, and text where a damaged file has no format."""
    return rows.assign(
        model=rows["model"].str[:12].fillna("damaged"),
        dtype=rows["dtype"].fillna(""),
        stored_as=rows["stored_as"].fillna(""),
        last_use=rows["last_use"].dt.strftime("%Y-%m-%d %H:%M"),
    )


def _table(rows: "pd.DataFrame") -> str:
    sizes = {name: rows[name].map(_size) for name in ("bytes", "saved") if name in rows}
    return rows.assign(**sizes).to_string(index=False)


def _size(count: float) -> str:
    """A number of bytes in the unit that people would use."""
    return ByteSize(count).human_readable(decimal=True, separator=" ")
