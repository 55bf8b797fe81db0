"""TTFT and what bounds it on a GPU, for models with the shape of a real one and random weights."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from transformers import PreTrainedModel

from ragkv.bench.batches import batch_rows
from ragkv.bench.parts import attention_rows, ceilings, decode_row, precompute_row, store_rows
from ragkv.bench.prefills import RATIOS, SELECTORS, Method, methods, prefill_rows
from ragkv.bench.random_models import random_model
from ragkv.bench.tiers import FILES, TIERS
from ragkv.costs.roofline import Machine
from ragkv.results.provenance import provenance
from ragkv.store import KVStore

LONGEST_FROM = {"page cache": 131072, "disk": 16384}  # tokens: longer prompts are not read from these tiers
# Tokens: longer prompts are timed twice only, and neither their attention nor storing them is measured by itself.
LONGEST_OFTEN = 32768
Record = dict[str, object]


@dataclass(frozen=True)
class ShapeBench:
    """What is measured: the options of ``python -m ragkv.bench --shape``.

    Attributes
    ----------
    tiers
        Where keys and values come from; without any, only full prefills are measured.
    selectors, ratios
        Which fused prefills are measured, in batches too: see `ragkv.bench.prefills.methods`.
    store
        The folder in which temporary stores are made, for the tiers of files; None is the system's.
    batches
        How many prompts of the first length are also prefilled together.
    """

    shape: str
    lengths: tuple[int, ...] = (8192, 16384, 32768)
    tiers: tuple[str, ...] = TIERS
    selectors: tuple[str, ...] = SELECTORS
    ratios: tuple[float, ...] = RATIOS
    store: Path | None = None
    format: str = "model"
    layers: int | None = None
    chunk_tokens: int = 512
    repeats: int = 20
    batches: tuple[int, ...] = ()

    def methods(self, layers: int) -> list[Method]:
        """The fused prefills that are measured, for a model with so many layers."""
        return methods(layers, self.selectors, self.ratios)


def measure_shape(options: ShapeBench, keep: Callable[[Record], object]) -> None:
    """Measure prefills at every length, then decoding, precompute, attention, the store and batches; print tables.

    Parameters
    ----------
    keep
        Called with the record after every step, as a later one may not fit in the GPU's memory.
    """
    model = random_model(options.shape, max(options.lengths), layers=options.layers)
    limits, source = ceilings(model.device), provenance(model)
    machine = Machine(str(source["device"]), limits["tflops"], limits["memory_gbs"])
    print(f"{options.shape}, random weights, on {source['device']}, {source['dtype']}; {limits}; milliseconds")
    parameters = {name: str(value) for name, value in asdict(options).items()}
    record: Record = {"parameters": parameters, "provenance": source, "ceilings": limits}
    with TemporaryDirectory(dir=options.store) as folder:
        _measure_prefills(options, model, machine, KVStore(folder, format=options.format), record, keep)
    with TemporaryDirectory(dir=options.store) as folder:
        parts = _parts(options, model, machine, KVStore(folder, format=options.format))
        for name, measure_part in parts.items():
            result = measure_part()
            table = result if isinstance(result, pd.DataFrame) else pd.DataFrame([result])
            print(f"\n{name}\n{table.to_string()}", flush=True)
            record[name] = _records(result) if isinstance(result, pd.DataFrame) else result
            keep(record)


def _measure_prefills(
    options: ShapeBench,
    model: PreTrainedModel,
    machine: Machine,
    store: KVStore,
    record: Record,
    keep: Callable[[Record], object],
) -> None:
    """Fill the record's ``rows``, length by length."""
    rows: list[dict] = []
    for tokens in options.lengths:
        tiers = [tier for tier in options.tiers if tokens <= LONGEST_FROM.get(tier, tokens)]
        table = prefill_rows(
            model,
            tokens,
            options.methods(model.config.num_hidden_layers),
            tiers,
            store,
            chunk_tokens=options.chunk_tokens,
            repeats=options.repeats if tokens <= LONGEST_OFTEN else 2,
            machine=machine,
        )
        print(f"\n{table.drop(columns=['flop', 'bytes']).round(2).to_string(index=False)}", flush=True)
        rows += _records(table)
        record["rows"] = rows
        keep(record)
        torch.cuda.empty_cache()


def _parts(
    options: ShapeBench, model: PreTrainedModel, machine: Machine, store: KVStore
) -> dict[str, Callable[[], object]]:
    """What is measured besides prefills, by its name in the record; `store` is empty."""
    first, chunk_tokens, repeats = options.lengths[0], options.chunk_tokens, options.repeats
    parts: dict[str, Callable[[], object]] = {
        "decoding": partial(decode_row, model, first, chunk_tokens=chunk_tokens, repeats=repeats, machine=machine)
    }
    if torch.cuda.device_count() > 1:  # the others are measured on one GPU
        return parts
    parts["precompute"] = partial(precompute_row, model, chunk_tokens, repeats)
    if lengths := [tokens for tokens in options.lengths if tokens <= LONGEST_OFTEN]:
        parts["attention"] = lambda: pd.concat(attention_rows(model.config, tokens) for tokens in lengths)
    if set(FILES) & set(options.tiers) and first <= LONGEST_OFTEN:
        parts["store"] = partial(store_rows, model, first, store, chunk_tokens=chunk_tokens, repeats=3)
    if options.batches:  # last, as they need the most memory
        parts["batches"] = partial(
            batch_rows,
            model,
            first,
            options.batches,
            options.methods(model.config.num_hidden_layers),
            chunk_tokens=chunk_tokens,
            repeats=repeats,
            machine=machine,
        )
    return parts


def _records(table: pd.DataFrame) -> list[dict]:
    """A table's rows as JSON holds them, with null for missing values."""
    return json.loads(table.to_json(orient="records"))
