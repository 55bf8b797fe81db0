"""Speed of a checkpoint on this machine, as ratios of times taken in one run; embedded models run on any CPU.

Fused prefill by selector against full prefill, precompute against a plain forward pass, with and without a learned
context, and in passes that chunks share against one by one, chunking against tokenisation.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from random import Random
from tempfile import TemporaryDirectory
from typing import get_args

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.bench.random_models import random_prompt
from ragkv.bench.timing import measure
from ragkv.benchmarks import haystack
from ragkv.contexts import LearnedContext
from ragkv.contexts.owner import owner
from ragkv.fusion.prefill import fused_prefill
from ragkv.fusion.workspace import Workspace
from ragkv.models.load import load_model
from ragkv.models.pass_shape import PassShape
from ragkv.models.segment_pass import compute_segment
from ragkv.prompt import Prompt
from ragkv.prompt.chunking import By, chunk_document
from ragkv.prompt.templates import encode
from ragkv.results.provenance import provenance
from ragkv.selectors import Selector, get_selector
from ragkv.store import KVStore
from ragkv.store.precompute import most_tokens, precompute

SELECTORS = ("full_reuse", "epic", "cacheblend", "a3")
DOCUMENT = 10_000  # tokens of the document that is cut into chunks
LEARNED = 16  # tokens of the learned context that a chunk is also computed behind
ON_CPU = 1024  # tokens of a shared pass that is measured on a CPU, where precompute does not use them
small_prompt = partial(random_prompt, prefix=2, question=8, bos=None)


@dataclass(frozen=True)
class CheckpointBench:
    """What is measured: the options of ``python -m ragkv.bench`` without ``--shape``."""

    model: str = "tiny-llama"
    device: str = "auto"
    dtype: str = "auto"
    tokens: int = 2048
    ratio: float = 0.15
    chunk_tokens: int = 128
    repeats: int = 20


def measure_checkpoint(options: CheckpointBench) -> dict[str, object]:
    """Measure, print tables, and return what a record holds: tables, parameters and provenance."""
    model, tokenizer = load_model(options.model, device=options.device, dtype=options.dtype)
    tables = {
        "prefill": prefill_times(model, options.tokens, options.ratio, options.chunk_tokens, options.repeats),
        "precompute": precompute_times(model, options.chunk_tokens, options.repeats),
        "storing": storing_times(model, options.chunk_tokens, options.repeats),
        "chunking": chunking_times(tokenizer, DOCUMENT, options.repeats),
    }
    titles = {
        "prefill": f"TTFT, {options.tokens} tokens, ratio {options.ratio}, chunks of {options.chunk_tokens}",
        "precompute": f"one chunk of {options.chunk_tokens} tokens",
        "storing": f"chunks of {options.chunk_tokens} tokens computed and stored, per chunk",
        "chunking": f"a document of {DOCUMENT:,} tokens",
    }
    source = provenance(model)
    print(f"{options.model} on {source['device']}, {source['threads']} threads, {source['dtype']}; milliseconds")
    for name, table in tables.items():
        print(f"\n{titles[name]}\n{table.round(2)}")
    rows = {name: table.to_dict("index") for name, table in tables.items()}
    parameters = {name: str(value) for name, value in asdict(options).items()}
    return rows | {"parameters": parameters, "provenance": source}


def prefill_times(model: PreTrainedModel, tokens: int, ratio: float, chunk_tokens: int, repeats: int) -> pd.DataFrame:
    """TTFT of a full prefill, by transformers and by this package, and of fused prefills from a store on disk.

    Those by this package run in a workspace where that is faster, as in an evaluation.
    """
    prompt = small_prompt(model.config.vocab_size, tokens, chunk_tokens)
    ids = torch.tensor([prompt.ids], device=model.device)

    @torch.inference_mode()
    def plain() -> int:
        return int(model(ids, logits_to_keep=1).logits[0, -1].argmax())

    with TemporaryDirectory() as folder:
        store = KVStore(folder)
        precompute(model, [prompt], store)
        workspace = Workspace.if_faster(model, tokens, "auto")
        selectors = {"full_prefill": get_selector("full_prefill")}
        for name in SELECTORS:
            selectors[name] = get_selector(name) if name == "full_reuse" else get_selector(name, ratio=ratio)

        def fused(selector: Selector) -> int:
            return int(fused_prefill(model, prompt, store, selector, workspace=workspace).logits.argmax())

        runs: dict[str, Callable[[], object]] = {"transformers": plain}
        runs |= {name: partial(fused, selector) for name, selector in selectors.items()}
        return measure(runs, repeats)


def precompute_times(model: PreTrainedModel, chunk_tokens: int, repeats: int) -> pd.DataFrame:
    """A plain forward pass over one chunk, and precompute's pass over it, without and with a learned context."""
    prompt = small_prompt(model.config.vocab_size, chunk_tokens + 10, chunk_tokens)
    alone = prompt.segments(None)[1]
    behind = prompt.behind(random_context(model, LEARNED)).segments(None)[1]
    ids = torch.tensor([alone.ids], device=model.device)
    runs: dict[str, Callable[[], object]] = {
        "plain forward": torch.inference_mode()(lambda: model(ids).logits),
        "precompute": partial(compute_segment, model, alone),
        f"precompute behind {LEARNED} learned tokens": partial(compute_segment, model, behind),
    }
    return measure(runs, repeats)


def random_context(model: PreTrainedModel, tokens: int) -> LearnedContext:
    """A context of random numbers, which takes as long as one that was trained."""
    config, head_dim = model.config, model.model.layers[0].self_attn.head_dim
    shape = (config.num_hidden_layers, 2, config.num_key_value_heads, tokens, head_dim)
    return LearnedContext(torch.randn(shape, generator=torch.Generator().manual_seed(0)), owner(model))


def storing_times(model: PreTrainedModel, chunk_tokens: int, repeats: int) -> pd.DataFrame:
    """Precompute into a new store on disk, one chunk after the other and in passes that chunks share, per chunk."""
    most = most_tokens(model) or ON_CPU
    rng = Random(0)

    def chunk() -> Prompt:
        return Prompt([], [[rng.randrange(3, model.config.vocab_size) for _ in range(chunk_tokens)]], [3])

    first = chunk()
    count = PassShape.shared(first.segments(None)[0], most).rows
    prompts = [first, *(chunk() for _ in range(count - 1))]

    def store(batch_tokens: int) -> None:
        with TemporaryDirectory() as folder:
            precompute(model, prompts, KVStore(folder), batch_tokens=batch_tokens)

    runs: dict[str, Callable[[], object]] = {
        "one by one": partial(store, 0),
        f"{count} in a pass": partial(store, most),
    }
    table = measure(runs, max(3, repeats // 4))
    table[["p20", "p50", "p80"]] /= count
    return table


def chunking_times(tokenizer: PreTrainedTokenizerBase, tokens: int, repeats: int) -> pd.DataFrame:
    """Tokenising a document of `tokens` tokens, alone and with cutting it into chunks."""
    sentences = haystack.fill(haystack.generated(Random(0)), tokenizer, tokens)
    paragraphs = [" ".join(sentences[i : i + 8]) for i in range(0, len(sentences), 8)]
    document = "\n\n".join(paragraphs)
    runs: dict[str, Callable[[], object]] = {"tokenisation": lambda: encode(tokenizer, document)}
    for by in get_args(By):
        runs[f"chunks by {by}"] = partial(chunk_document, tokenizer, document, by=by)
    return measure(runs, repeats)
