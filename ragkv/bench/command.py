"""``python -m ragkv.bench``: speed on this machine, as ratios of times taken in one run.

Fused prefill by selector against full prefill, precompute against a plain forward pass, chunking against tokenisation.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import get_args

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.bench.parts import attention_rows, ceilings, decode_row, precompute_row, store_rows
from ragkv.bench.prefills import prefill_rows
from ragkv.bench.random_models import FAMILY, random_model, random_prompt
from ragkv.bench.tiers import TIERS
from ragkv.bench.timing import measure
from ragkv.benchmarks import haystack
from ragkv.fusion.prefill import fused_prefill
from ragkv.models.load import load_model
from ragkv.models.segment_pass import compute_segment
from ragkv.prompt.chunking import By, chunk_document
from ragkv.prompt.templates import encode
from ragkv.results.files import write_json
from ragkv.results.provenance import provenance
from ragkv.selectors import Selector, get_selector
from ragkv.store import KVStore
from ragkv.store.precompute import precompute
from ragkv.store.quantize import FORMATS

UP_TO = {"page cache": 32768, "disk": 16384}  # tokens: longer prompts are not read from files
OFTEN_UP_TO = 32768  # tokens: longer prompts are timed twice only
SELECTORS = ("full_reuse", "epic", "cacheblend", "a3")
small_prompt = partial(random_prompt, prefix=2, question=8, bos=None)


def prefill_times(model: PreTrainedModel, tokens: int, ratio: float, chunk_tokens: int, repeats: int) -> pd.DataFrame:
    """TTFT of a full prefill, by transformers and by this package, and of fused prefills from a store on disk."""
    prompt = small_prompt(model.config.vocab_size, tokens, chunk_tokens)
    ids = torch.tensor([prompt.ids], device=model.device)

    @torch.inference_mode()
    def plain() -> int:
        return int(model(ids, logits_to_keep=1).logits[0, -1].argmax())

    with TemporaryDirectory() as folder:
        store = KVStore(folder)
        precompute(model, [prompt], store)
        selectors = {"full_prefill": get_selector("full_prefill")}
        for name in SELECTORS:
            selectors[name] = get_selector(name) if name == "full_reuse" else get_selector(name, ratio=ratio)

        def fused(selector: Selector) -> int:
            return int(fused_prefill(model, prompt, store, selector).logits.argmax())

        runs: dict[str, Callable[[], object]] = {"transformers": plain}
        runs |= {name: partial(fused, selector) for name, selector in selectors.items()}
        return measure(runs, repeats)


def precompute_times(model: PreTrainedModel, chunk_tokens: int, repeats: int) -> pd.DataFrame:
    """A plain forward pass over one chunk, and precompute's pass over it."""
    prompt = small_prompt(model.config.vocab_size, chunk_tokens + 10, chunk_tokens)
    segment = prompt.segments(None)[1]
    ids = torch.tensor([segment.ids], device=model.device)
    plain = torch.inference_mode()(lambda: model(ids).logits)
    return measure({"plain forward": plain, "precompute": lambda: compute_segment(model, segment)}, repeats)


def chunking_times(tokenizer: PreTrainedTokenizerBase, tokens: int, repeats: int) -> pd.DataFrame:
    """Tokenisation of a document of `tokens` tokens alone, and with cutting it."""
    sentences = haystack.fill(haystack.generated(Random(0)), tokenizer, tokens)
    document = "\n\n".join(" ".join(sentences[i : i + 8]) for i in range(0, len(sentences), 8))
    runs: dict[str, Callable[[], object]] = {"tokenisation": lambda: encode(tokenizer, document)}
    for by in get_args(By):
        runs[f"chunks by {by}"] = partial(chunk_document, tokenizer, document, by=by)
    return measure(runs, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ragkv.bench", description=__doc__)
    parser.add_argument("--model", default="tiny-llama")
    parser.add_argument(
        "--shape", choices=list(FAMILY), help="on a GPU: a model of this shape with random weights, latency only"
    )
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=[8192, 16384, 32768],
        help="with --shape; decoding and the store are measured at the first",
    )
    parser.add_argument("--tiers", nargs="+", choices=TIERS, default=TIERS, help="with --shape: where K/V come from")
    parser.add_argument(
        "--store", type=Path, help="with --shape: a folder on a local disk for the tiers of files (default: a new one)"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="model", help="with --shape: how its files hold keys and values"
    )
    parser.add_argument("--layers", type=int, help="with --shape: so many layers instead of the shape's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=2048, help="prompt length (default: %(default)s)")
    parser.add_argument("--ratio", type=float, default=0.15)
    parser.add_argument("--chunk-tokens", type=int, help="default: 128, with --shape 512")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, help="also write the rows, with their provenance, to this JSON file")
    options = parser.parse_args()
    options.chunk_tokens = options.chunk_tokens or (512 if options.shape else 128)
    if options.shape:
        return _on_a_gpu(options)
    model, tokenizer = load_model(options.model, device=options.device, dtype=options.dtype)
    prefill = prefill_times(model, options.tokens, options.ratio, options.chunk_tokens, options.repeats)
    offline = precompute_times(model, options.chunk_tokens, options.repeats)
    chunking = chunking_times(tokenizer, 10_000, options.repeats)
    source = provenance(model)
    print(f"{options.model} on {source['device']}, {source['threads']} threads, {source['dtype']}; milliseconds")
    print(
        f"\nTTFT, {options.tokens} tokens, ratio {options.ratio}, chunks of {options.chunk_tokens}\n{prefill.round(2)}"
    )
    print(f"\none chunk of {options.chunk_tokens} tokens\n{offline.round(2)}")
    print(f"\na document of 10,000 tokens\n{chunking.round(2)}")
    if options.out:
        rows = {
            name: json.loads(table.to_json(orient="index"))
            for name, table in (("prefill", prefill), ("precompute", offline), ("chunking", chunking))
        }
        given = {name: str(value) for name, value in vars(options).items() if name != "out"}
        write_json(options.out, rows | {"parameters": given, "provenance": source})


def _on_a_gpu(options: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("--shape needs a GPU, and PyTorch sees none here: leave it out to measure on the CPU")
    with TemporaryDirectory(dir=options.store) as folder, TemporaryDirectory(dir=options.store) as other:
        _measure_shape(options, *(KVStore(url, format=options.format) for url in (folder, other)))


def _measure_shape(options: argparse.Namespace, store: KVStore, other: KVStore) -> None:
    """Print what a shape's prefills take, and write it down; `store` holds the prompts' segments, `other` is empty."""
    model = random_model(options.shape, max(options.lengths), layers=options.layers)
    limits, source = ceilings(model.device), provenance(model)
    chunk, repeats = options.chunk_tokens, options.repeats
    given = {name: str(value) for name, value in vars(options).items() if name != "out"}
    print(f"{options.shape}, random weights, on {source['device']}, {source['dtype']}; {limits}; milliseconds")
    measured: dict[str, object] = {"parameters": given, "provenance": source, "ceilings": limits}
    rows: list[dict] = []
    for tokens in options.lengths:
        tiers = [tier for tier in options.tiers if tokens <= UP_TO.get(tier, tokens)]
        times = repeats if tokens <= OFTEN_UP_TO else 2
        table = prefill_rows(model, tokens, tiers, store, chunk_tokens=chunk, repeats=times, limits=limits)
        print(f"\n{table.drop(columns=['flop', 'bytes']).round(2).to_string(index=False)}", flush=True)
        rows += _records(table)
        measured["rows"] = rows
        _keep(options.out, measured)  # a later one may not fit the GPU
        torch.cuda.empty_cache()
    first = options.lengths[0]
    more: dict[str, Callable[[], object]] = {
        "decoding": partial(
            decode_row, model, first, chunk_tokens=chunk, repeats=repeats, bandwidth=limits["memory_gbs"]
        )
    }
    if torch.cuda.device_count() == 1:
        more["precompute"] = partial(precompute_row, model, chunk, repeats)
        if often := [tokens for tokens in options.lengths if tokens <= OFTEN_UP_TO]:
            more["attention"] = lambda: pd.concat(attention_rows(model.config, tokens) for tokens in often)
        if UP_TO.keys() & set(options.tiers):
            more["store"] = partial(store_rows, model, first, other, chunk_tokens=chunk, repeats=3)
    for name, measure_it in more.items():
        found = measure_it()
        print(f"\n{name}\n{found if isinstance(found, pd.DataFrame) else pd.DataFrame([found])}", flush=True)
        measured[name] = _records(found) if isinstance(found, pd.DataFrame) else found
        _keep(options.out, measured)


def _records(table: pd.DataFrame) -> list[dict]:
    """Its rows for a JSON file, where what there is not is null."""
    return json.loads(table.to_json(orient="records"))


def _keep(path: Path | None, measured: dict[str, object]) -> None:
    if path is not None:
        write_json(path, measured)


if __name__ == "__main__":
    main()
