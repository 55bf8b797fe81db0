"""``python -m ragkv.bench``: measure speed on this machine."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer

from ragkv.bench.batches import MOST, batched
from ragkv.bench.checkpoint import CheckpointBench, measure_checkpoint
from ragkv.bench.prefills import RATIOS, SELECTORS
from ragkv.bench.random_models import FAMILY
from ragkv.bench.shapes import ShapeBench, measure_shape
from ragkv.bench.tiers import TIERS
from ragkv.results.files import write_json
from ragkv.store.quantize import FORMATS

Number = TypeVar("Number", int, float)
CHECKPOINT = "Without --shape: a checkpoint on any device"
SHAPE = "With --shape: random weights on a GPU, latency only"


def bench(
    shape: Annotated[
        str | None, typer.Option(help=f"Measure a model of this shape: {', '.join(FAMILY)}.", rich_help_panel=SHAPE)
    ] = None,
    lengths: Annotated[
        list[str] | None,
        typer.Option(
            help="Tokens of the prompts, separated by commas (default: 8192,16384,32768); decoding and the store are "
            "measured at the first.",
            rich_help_panel=SHAPE,
        ),
    ] = None,
    tiers: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Where keys and values come from, separated by commas (default: {','.join(TIERS)}); "
            '"" measures only full prefills.',
            rich_help_panel=SHAPE,
        ),
    ] = None,
    selectors: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Which selectors are measured, separated by commas (default: {','.join(SELECTORS)}).",
            rich_help_panel=SHAPE,
        ),
    ] = None,
    ratios: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Shares of tokens that they recompute, separated by commas (default: {','.join(map(str, RATIOS))}).",
            rich_help_panel=SHAPE,
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            help="An existing folder on a local disk for the tiers of files (default: the system's temporary folder).",
            rich_help_panel=SHAPE,
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help=f"How these files hold keys and values: {', '.join(FORMATS)} (default: model).",
            rich_help_panel=SHAPE,
        ),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="The number of layers, if not the shape's.", rich_help_panel=SHAPE)
    ] = None,
    batches: Annotated[
        list[str] | None,
        typer.Option(
            help="Also prefill so many prompts of the first length together, separated by commas, such as 1,4,16.",
            rich_help_panel=SHAPE,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="An embedded model, a local folder or a hub id (default: tiny-llama).", rich_help_panel=CHECKPOINT
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto is the GPU if there is one (default: auto).", rich_help_panel=CHECKPOINT)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto is the checkpoint's (default: auto).", rich_help_panel=CHECKPOINT)
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the prompt (default: 2048).", rich_help_panel=CHECKPOINT)
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of tokens to recompute (default: 0.15).", rich_help_panel=CHECKPOINT),
    ] = None,
    chunk_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a chunk (default: 128, with --shape 512).")
    ] = None,
    repeats: Annotated[int, typer.Option(min=2, help="How often each prefill is timed.")] = 20,
    out: Annotated[
        Path | None, typer.Option(help="Also write the rows, with their provenance, to this JSON file.")
    ] = None,
) -> None:
    """Measure fused prefills against full prefills on this machine, as ratios of times taken in one run.

    Without --shape, also precompute against a plain forward pass and chunking against tokenisation. With --shape, TTFT
    by prompt length and by where keys and values come from, and what bounds it.
    """
    of_both = {"chunk_tokens": chunk_tokens, "repeats": repeats}
    of_checkpoint = {"model": model, "device": device, "dtype": dtype, "tokens": tokens, "ratio": ratio}
    of_shape: dict[str, Any] = {
        "lengths": _each("--lengths", lengths, _count, "a number of tokens", "8192,16384"),
        "tiers": () if tiers == [""] else _items(tiers),
        "selectors": _items(selectors),
        "ratios": _each("--ratios", ratios, _share, "a ratio above 0 and up to 1", "0.02,0.15"),
        "store": store,
        "format": format,
        "layers": layers,
        "batches": _each("--batches", batches, _count, "a number of prompts", "1,4,16"),
    }
    if shape is None:
        _refuse(of_shape, "only together with --shape")
        record = measure_checkpoint(CheckpointBench(**_given(of_checkpoint | of_both)))
        if out:
            write_json(out, record)
        return
    _refuse(of_checkpoint, "only without --shape")
    _choose("--shape", [shape], list(FAMILY))
    _choose("--tiers", of_shape["tiers"] or [], list(TIERS))
    _choose("--selectors", of_shape["selectors"] or [], list(SELECTORS))
    _choose("--format", [format] if format else [], list(FORMATS))
    if not torch.cuda.is_available():
        raise typer.BadParameter(
            "this needs a GPU, and PyTorch sees none here: leave it out to measure on the CPU", param_hint="--shape"
        )
    options = ShapeBench(shape, **_given(of_shape | of_both))
    if options.batches and not batched(options.methods(layers=1)):
        raise typer.BadParameter(
            "none of these selectors and ratios can be measured in batches: choose probe, a3 or epic, and a ratio of "
            f"at most {MOST}",
            param_hint="--batches",
        )
    keep = partial(write_json, out) if out else lambda record: None
    measure_shape(options, keep)


def _items(values: list[str] | None) -> tuple[str, ...] | None:
    """What was separated by commas or given by repeating the option."""
    return tuple(item.strip() for value in values for item in value.split(",")) if values else None


def _each(
    option: str, values: list[str] | None, parse: Callable[[str], Number | None], what: str, example: str
) -> tuple[Number, ...] | None:
    """The same, each of them parsed; an error for one that `parse` returns None for."""
    items = _items(values)
    if items is None:
        return None
    parsed = []
    for item in items:
        value = parse(item)
        if value is None:
            raise typer.BadParameter(
                f"{item!r} is not {what}: separate them by commas, such as {example}", param_hint=option
            )
        parsed.append(value)
    return tuple(parsed)


def _count(text: str) -> int | None:
    """A positive number of things."""
    return int(text) or None if text.isdecimal() else None


def _share(text: str) -> float | None:
    """A number above 0 and up to 1."""
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 < share <= 1 else None


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; the others keep their defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _refuse(options: dict[str, Any], when: str) -> None:
    """An error for options that would have no effect."""
    if names := [f"--{name}" for name in _given(options)]:
        raise typer.BadParameter(f"use this {when}", param_hint=", ".join(names))


def _choose(option: str, values: list[str], known: list[str]) -> None:
    """An error for values that do not exist."""
    for value in values:
        if value not in known:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}", param_hint=option)
